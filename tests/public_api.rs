//! The public API, held by a snapshot: `tests/public_api.txt` has one line per public item, and a
//! change of the API is a change of that file, seen in review. Written anew by
//! `FIRSTBYTE_BLESS=1 cargo test --test public_api`.
//!
//! The API is computed from `src` by syn, on stable and without rustdoc: `pub mod` and `pub use`
//! are followed from lib.rs, `macro_rules!` that make items are expanded, and every name in a
//! signature is resolved. So a second test can hold which crates a signature may name, and that
//! whatever it names of ours can be named by users too.
//!
//! Not seen: auto traits (`Send`, `Unpin`), values of constants, and types behind `impl Trait`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Ident, Spacing, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{Parse, ParseStream, Parser};

/// Crates that any public signature may name.
const EVERYWHERE: &[&str] = &[
    "std",
    "core",
    "alloc",
    "http",
    "http_body",
    "bytes",
    "tower_service",
    "serde",
];

/// Crates that only some public modules (or private ones, by where the item is defined) may name.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("tokio", &["io", "upgraded", "connector"]),
    ("rustls", &["tls", "danger"]),
    ("hyper_util", &["connector"]),
];

/// Why a signature of the item may not name `krate`, if so.
fn refusal(krate: &str, line: &Line) -> Option<String> {
    if EVERYWHERE.contains(&krate) {
        return None;
    }
    let Some((_, modules)) = ONLY_IN.iter().find(|(name, _)| *name == krate) else {
        return Some(format!(
            "only {} may be named in public signatures",
            EVERYWHERE.join(", ")
        ));
    };
    let is_in = |path: &Names| path.iter().any(|name| modules.contains(&name.as_str()));
    // tokio's traits on `Transport`, and what hyper-util wants, are known by the module that defines them, wherever it is
    // exported.
    let is_defined_in = krate != "rustls" && is_in(&line.module);
    if is_defined_in
        || line
            .reached
            .iter()
            .all(|path| is_in(&path[..path.len() - 1].to_vec()))
    {
        return None;
    }
    Some(format!(
        "{krate} may be named only in {}",
        modules.join(", ")
    ))
}

/// Names from the crate root down.
type Names = Vec<String>;

/// One line of the snapshot.
struct Line {
    /// Sorts the lines of an item below the item.
    key: (String, u8),
    text: String,
    /// The module that holds the source.
    module: Names,
    /// Every public path of the item.
    reached: Vec<Names>,
    /// The roots of foreign paths in it.
    crates: BTreeSet<String>,
    /// Names of ours in it that users cannot name.
    unnamed: BTreeSet<String>,
}

// -------------------------------------------------------------------------------- the source

/// A conditional attribute, as it is shown.
type Cfgs = BTreeSet<String>;

#[derive(Default)]
struct Module {
    cfgs: Cfgs,
    items: Vec<syn::Item>,
    children: Vec<Child>,
    imports: Vec<Import>,
}

struct Child {
    name: String,
    public: bool,
}

/// One leaf of a `use`.
struct Import {
    /// `None` for a glob.
    name: Option<String>,
    path: Names,
    public: bool,
    cfgs: Cfgs,
}

#[derive(Default)]
struct Source {
    root: PathBuf,
    modules: BTreeMap<Names, Module>,
    macros: BTreeMap<String, Vec<Rule>>,
    exported_macros: Vec<(String, Names, Cfgs)>,
    /// What the test cannot see through.
    blind: Vec<String>,
}

impl Source {
    fn read(root: &Path) -> Self {
        let mut source = Self {
            root: root.to_owned(),
            ..Self::default()
        };
        source.read_file(
            &vec![],
            Path::new("src/lib.rs"),
            Path::new("src"),
            Cfgs::new(),
        );
        source
    }

    fn read_file(&mut self, module: &Names, file: &Path, dir: &Path, cfgs: Cfgs) {
        let parsed = fs::read_to_string(self.root.join(file))
            .map_err(|e| e.to_string())
            .and_then(|text| syn::parse_file(&text).map_err(|e| e.to_string()));
        match parsed {
            Ok(parsed) => self.read_items(module, parsed.items, file, dir, cfgs),
            Err(error) => self.blind.push(format!("{}: {error}", file.display())),
        }
    }

    fn read_items(
        &mut self,
        module: &Names,
        items: Vec<syn::Item>,
        file: &Path,
        dir: &Path,
        cfgs: Cfgs,
    ) {
        let here = self.modules.entry(module.clone()).or_default();
        here.cfgs.extend(cfgs.clone());
        for item in items {
            let Some(own) = visible_cfgs(attributes(&item)) else {
                continue;
            };
            match item {
                syn::Item::Mod(item) => {
                    let name = plain(&item.ident);
                    let mut child = module.clone();
                    child.push(name.clone());
                    let dir = dir.join(&name);
                    let public = is_pub(&item.vis);
                    self.modules
                        .entry(module.clone())
                        .or_default()
                        .children
                        .push(Child { name, public });
                    let cfgs = &cfgs | &own;
                    match item.content {
                        Some((_, items)) => self.read_items(&child, items, file, &dir, cfgs),
                        None => {
                            let flat = dir.with_extension("rs");
                            let flat = if self.root.join(&flat).is_file() {
                                flat
                            } else {
                                dir.join("mod.rs")
                            };
                            self.read_file(&child, &flat, &dir, cfgs);
                        }
                    }
                }
                syn::Item::Use(item) => {
                    let mut leaves = Vec::new();
                    flatten(&vec![], &item.tree, &mut leaves);
                    let here = self.modules.entry(module.clone()).or_default();
                    here.imports
                        .extend(leaves.into_iter().map(|(name, path)| Import {
                            name,
                            path,
                            public: is_pub(&item.vis),
                            cfgs: own.clone(),
                        }));
                }
                syn::Item::Macro(item) => match &item.ident {
                    Some(name) => {
                        let name = plain(name);
                        if item.attrs.iter().any(|a| a.path().is_ident("macro_export")) {
                            self.exported_macros
                                .push((name.clone(), module.clone(), &cfgs | &own));
                        }
                        self.macros.insert(name, rules_of(item.mac.tokens));
                    }
                    None => match self.expand::<syn::File>(&item.mac) {
                        Some(made) => self.read_items(module, made.items, file, dir, cfgs.clone()),
                        None if makes_public_items(item.mac.tokens.clone()) => {
                            self.blind.push(format!(
                                "{}: the public items that {}! makes",
                                file.display(),
                                item.mac.path.to_token_stream()
                            ))
                        }
                        None => {}
                    },
                },
                item => self
                    .modules
                    .entry(module.clone())
                    .or_default()
                    .items
                    .push(item),
            }
        }
    }

    /// The expansion of a macro of this crate.
    fn expand<T: Parse>(&self, mac: &syn::Macro) -> Option<T> {
        let name = plain(&mac.path.segments.last()?.ident);
        let input: Vec<TokenTree> = mac.tokens.clone().into_iter().collect();
        self.macros.get(&name)?.iter().find_map(|rule| {
            let (bound, used) = matched(&rule.pattern, &input)?;
            if used < input.len() {
                return None;
            }
            syn::parse2(transcribed(rule.body.clone(), &bound)).ok()
        })
    }
}

fn plain(ident: &Ident) -> String {
    let name = ident.to_string();
    name.strip_prefix("r#").map(str::to_owned).unwrap_or(name)
}

fn is_pub(vis: &syn::Visibility) -> bool {
    matches!(vis, syn::Visibility::Public(_))
}

fn makes_public_items(tokens: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens.iter().enumerate().any(|(at, token)| match token {
        TokenTree::Ident(i) => {
            i == "pub" && !matches!(tokens.get(at + 1), Some(TokenTree::Group(_)))
        }
        TokenTree::Group(g) => makes_public_items(g.stream()),
        _ => false,
    })
}

fn flatten(prefix: &Names, tree: &syn::UseTree, leaves: &mut Vec<(Option<String>, Names)>) {
    let full = |ident: &Ident| {
        let mut path = prefix.clone();
        if ident != "self" || path.is_empty() {
            path.push(plain(ident));
        }
        path
    };
    match tree {
        syn::UseTree::Path(tree) => flatten(&full(&tree.ident), &tree.tree, leaves),
        syn::UseTree::Name(name) => {
            let path = full(&name.ident);
            leaves.push((path.last().cloned(), path));
        }
        syn::UseTree::Rename(name) if name.rename == "_" => {}
        syn::UseTree::Rename(name) => leaves.push((Some(plain(&name.rename)), full(&name.ident))),
        syn::UseTree::Glob(_) => leaves.push((None, prefix.clone())),
        syn::UseTree::Group(group) => group
            .items
            .iter()
            .for_each(|tree| flatten(prefix, tree, leaves)),
    }
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(i) => &i.attrs,
        syn::Item::Enum(i) => &i.attrs,
        syn::Item::ExternCrate(i) => &i.attrs,
        syn::Item::Fn(i) => &i.attrs,
        syn::Item::Impl(i) => &i.attrs,
        syn::Item::Macro(i) => &i.attrs,
        syn::Item::Mod(i) => &i.attrs,
        syn::Item::Static(i) => &i.attrs,
        syn::Item::Struct(i) => &i.attrs,
        syn::Item::Trait(i) => &i.attrs,
        syn::Item::TraitAlias(i) => &i.attrs,
        syn::Item::Type(i) => &i.attrs,
        syn::Item::Union(i) => &i.attrs,
        syn::Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

/// The name and visibility of an item that has both.
fn named(item: &syn::Item) -> Option<(String, bool)> {
    let (ident, vis) = match item {
        syn::Item::Const(i) => (&i.ident, &i.vis),
        syn::Item::Enum(i) => (&i.ident, &i.vis),
        syn::Item::Fn(i) => (&i.sig.ident, &i.vis),
        syn::Item::Static(i) => (&i.ident, &i.vis),
        syn::Item::Struct(i) => (&i.ident, &i.vis),
        syn::Item::Trait(i) => (&i.ident, &i.vis),
        syn::Item::TraitAlias(i) => (&i.ident, &i.vis),
        syn::Item::Type(i) => (&i.ident, &i.vis),
        syn::Item::Union(i) => (&i.ident, &i.vis),
        _ => return None,
    };
    Some((plain(ident), is_pub(vis)))
}

/// The conditions of an item; `None` if it is hidden or never part of a product build.
fn visible_cfgs(attributes: &[syn::Attribute]) -> Option<Cfgs> {
    let mut cfgs = Cfgs::new();
    for attribute in attributes {
        let syn::Meta::List(list) = &attribute.meta else {
            continue;
        };
        if list.path.is_ident("doc") && list.tokens.to_string() == "hidden" {
            return None;
        }
        if list.path.is_ident("cfg") {
            match truth(&attribute.parse_args::<syn::Meta>().ok()?) {
                Some(false) => return None,
                Some(true) => {}
                None => {
                    cfgs.insert(format!("[{}]", spaced(&pieces(list.tokens.clone()))));
                }
            }
        }
    }
    Some(cfgs)
}

/// A cfg with neither tests nor loom nor fuzzing; `None` if it depends on something else.
fn truth(cfg: &syn::Meta) -> Option<bool> {
    let list = match cfg {
        syn::Meta::List(list) => list,
        other => {
            let is_test = ["test", "loom", "fuzzing", "doctest"]
                .iter()
                .any(|name| other.path().is_ident(name));
            return is_test.then_some(false);
        }
    };
    let parser = syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated;
    let parts: Vec<Option<bool>> = list
        .parse_args_with(parser)
        .ok()?
        .iter()
        .map(truth)
        .collect();
    let (decisive, other) = if list.path.is_ident("all") {
        (false, true)
    } else if list.path.is_ident("any") {
        (true, false)
    } else {
        return parts.first()?.map(|t| !t);
    };
    if parts.contains(&Some(decisive)) {
        Some(decisive)
    } else if parts.contains(&None) {
        None
    } else {
        Some(other)
    }
}

// -------------------------------------------------------------------------- names and paths

enum Target {
    Module(Names),
    /// An item of ours, and what follows it in the path.
    Item(Names, String, Names),
    /// A path out of the crate.
    Foreign(Names),
}

type Seen = BTreeSet<(Names, String)>;

impl Source {
    fn resolve(&self, from: &Names, path: &[String], seen: &mut Seen) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk(&vec![], rest, seen),
            "self" => self.walk(from, rest, seen),
            "super" => self.walk(&from.split_last()?.1.to_vec(), rest, seen),
            name => self.step(from, name, rest, seen),
        }
    }

    fn walk(&self, module: &Names, path: &[String], seen: &mut Seen) -> Option<Target> {
        let Some((name, rest)) = path.split_first() else {
            return Some(Target::Module(module.clone()));
        };
        match name.as_str() {
            "self" => self.walk(module, rest, seen),
            "super" => self.walk(&module.split_last()?.1.to_vec(), rest, seen),
            name => self.step(module, name, rest, seen),
        }
    }

    fn step(&self, module: &Names, name: &str, rest: &[String], seen: &mut Seen) -> Option<Target> {
        let scope = self.modules.get(module)?;
        if scope.children.iter().any(|c| c.name == name) {
            let mut child = module.clone();
            child.push(name.into());
            return self.walk(&child, rest, seen);
        }
        if scope.items.iter().filter_map(named).any(|(n, _)| n == name) {
            return Some(Target::Item(module.clone(), name.into(), rest.to_vec()));
        }
        if !seen.insert((module.clone(), name.into())) {
            return None;
        }
        if let Some(import) = scope
            .imports
            .iter()
            .find(|i| i.name.as_deref() == Some(name))
        {
            let path: Names = import.path.iter().chain(rest).cloned().collect();
            return self
                .resolve(module, &path, seen)
                .or(Some(Target::Foreign(path)));
        }
        let globs = scope.imports.iter().filter(|i| i.name.is_none());
        globs
            .into_iter()
            .find_map(|glob| match self.resolve(module, &glob.path, seen)? {
                Target::Module(target) => self.step(&target, name, rest, seen),
                _ => None,
            })
    }
}

// ------------------------------------------------------------------------ what users can reach

type Def = (Names, String);

impl Source {
    /// The type behind an alias without parameters.
    fn alias(&self, def: &Def) -> Option<&syn::Type> {
        self.modules[&def.0]
            .items
            .iter()
            .find_map(|item| match item {
                syn::Item::Type(i) if i.ident == def.1 && i.generics.params.is_empty() => {
                    Some(&*i.ty)
                }
                _ => None,
            })
    }
}

/// The public paths of every reachable item, each with its conditions.
struct Api<'a> {
    source: &'a Source,
    reached: BTreeMap<Def, BTreeMap<Names, Cfgs>>,
    lines: Vec<Line>,
}

impl<'a> Api<'a> {
    fn of(source: &'a Source) -> Self {
        let mut api = Self {
            source,
            reached: BTreeMap::new(),
            lines: vec![],
        };
        api.open(
            &vec![],
            &vec!["firstbyte".into()],
            &Cfgs::new(),
            &mut vec![],
        );
        api.describe();
        api.lines
            .sort_by(|a, b| (&a.key, &a.text).cmp(&(&b.key, &b.text)));
        api.lines.dedup_by(|a, b| a.text == b.text);
        api
    }

    /// Everything public in `module`, as users see it at `path`.
    fn open(&mut self, module: &Names, path: &Names, cfgs: &Cfgs, stack: &mut Vec<Names>) {
        if stack.contains(module) {
            return;
        }
        let Some(scope) = self.source.modules.get(module) else {
            return;
        };
        stack.push(module.clone());
        for (name, public) in scope.items.iter().filter_map(named) {
            if public {
                self.reach((module.clone(), name.clone()), joined(path, &name), cfgs);
            }
        }
        for child in scope.children.iter().filter(|c| c.public) {
            self.open_module(
                &joined(module, &child.name),
                &joined(path, &child.name),
                cfgs,
                stack,
            );
        }
        for import in scope.imports.iter().filter(|i| i.public) {
            let cfgs = cfgs | &import.cfgs;
            let target = self.source.resolve(module, &import.path, &mut Seen::new());
            match (target, &import.name) {
                (Some(Target::Module(target)), Some(name)) => {
                    self.open_module(&target, &joined(path, name), &cfgs, stack);
                }
                (Some(Target::Module(target)), None) => self.open(&target, path, &cfgs, stack),
                (Some(Target::Item(target, item, rest)), Some(name)) if rest.is_empty() => {
                    self.reach((target, item), joined(path, name), &cfgs);
                }
                (Some(Target::Item(_, item, rest)), name) => {
                    let from = [vec![item], rest].concat().join("::");
                    let name = name.as_deref().unwrap_or("*");
                    let text = format!("pub use {}::{name} = {from}", path.join("::"));
                    self.push(
                        &joined(path, name),
                        0,
                        text,
                        module,
                        &cfgs,
                        Scribe::new(module),
                    );
                }
                (foreign, name) => {
                    let from = if let Some(Target::Foreign(path)) = foreign {
                        path
                    } else {
                        import.path.clone()
                    };
                    let from = original(&from);
                    let name = name.as_deref().unwrap_or("*");
                    let text = format!("pub use {}::{name} = {}", path.join("::"), from.join("::"));
                    let mut scribe = Scribe::new(module);
                    scribe.crates.insert(from[0].clone());
                    self.push(&joined(path, name), 0, text, module, &cfgs, scribe);
                }
            }
        }
        stack.pop();
    }

    fn open_module(&mut self, module: &Names, path: &Names, cfgs: &Cfgs, stack: &mut Vec<Names>) {
        let Some(scope) = self.source.modules.get(module) else {
            return;
        };
        let cfgs = cfgs | &scope.cfgs;
        self.push(
            path,
            0,
            format!("pub mod {}", path.join("::")),
            module,
            &cfgs,
            Scribe::new(module),
        );
        self.open(module, path, &cfgs, stack);
    }

    fn reach(&mut self, def: Def, path: Names, cfgs: &Cfgs) {
        self.reached
            .entry(def)
            .or_default()
            .entry(path)
            .or_insert_with(|| cfgs.clone());
    }

    /// The shortest public path of an item.
    fn canonical(&self, def: &Def) -> Option<(&Names, &Cfgs)> {
        self.reached
            .get(def)?
            .iter()
            .min_by_key(|(path, _)| (path.len(), *path))
    }

    fn push(
        &mut self,
        path: &Names,
        rank: u8,
        text: String,
        module: &Names,
        cfgs: &Cfgs,
        scribe: Scribe,
    ) {
        let reached = vec![path.clone()];
        self.push_reached(path, rank, text, module, cfgs, scribe, reached);
    }

    #[allow(clippy::too_many_arguments)]
    fn push_reached(
        &mut self,
        path: &Names,
        rank: u8,
        text: String,
        module: &Names,
        cfgs: &Cfgs,
        scribe: Scribe,
        reached: Vec<Names>,
    ) {
        let suffix: String = cfgs.iter().map(|cfg| format!(" {cfg}")).collect();
        self.lines.push(Line {
            key: (path.join("::"), rank),
            text: text + &suffix,
            module: module.clone(),
            reached,
            crates: scribe.crates,
            unnamed: scribe.unnamed,
        });
    }

    // ------------------------------------------------------------------------ the lines

    fn describe(&mut self) {
        for (def, paths) in self.reached.clone() {
            let (path, cfgs) = self
                .canonical(&def)
                .map(|(p, c)| (p.clone(), c.clone()))
                .expect("it is reached");
            for (alias, cfgs) in paths.iter().filter(|(alias, _)| **alias != path) {
                let text = format!("pub use {} = {}", alias.join("::"), path[1..].join("::"));
                self.push(alias, 0, text, &def.0, cfgs, Scribe::new(&def.0));
            }
            let scope = &self.source.modules[&def.0];
            for item in scope
                .items
                .iter()
                .filter(|i| named(i).is_some_and(|(name, _)| name == def.1))
            {
                let Some(own) = visible_cfgs(attributes(item)) else {
                    continue;
                };
                let context = Context {
                    def: &def,
                    path: &path,
                    cfgs: &cfgs | &own,
                    reached: paths.keys().cloned().collect(),
                };
                self.describe_item(&context, item);
            }
        }
        for (name, module, cfgs) in &self.source.exported_macros {
            let path = vec!["firstbyte".into(), name.clone()];
            self.push(
                &path,
                0,
                format!("macro firstbyte::{name}!"),
                module,
                cfgs,
                Scribe::new(module),
            );
        }
        for (module, scope) in &self.source.modules {
            for item in &scope.items {
                if let syn::Item::Impl(block) = item
                    && let Some(own) = visible_cfgs(&block.attrs)
                {
                    self.describe_impl(module, block, &(&scope.cfgs | &own));
                }
            }
        }
    }

    fn line(&mut self, context: &Context<'_>, rank: u8, text: String, cfgs: &Cfgs, scribe: Scribe) {
        let (path, module) = (context.path.clone(), context.def.0.clone());
        self.push_reached(
            &path,
            rank,
            text,
            &module,
            cfgs,
            scribe,
            context.reached.clone(),
        );
    }

    fn describe_item(&mut self, context: &Context<'_>, item: &syn::Item) {
        let name = context.path.join("::");
        let mut scribe = Scribe::new(&context.def.0);
        match item {
            syn::Item::Const(i) => {
                let text = format!("pub const {name}: {}", scribe.write(self, &i.ty));
                self.line(context, 0, text, &context.cfgs, scribe);
            }
            syn::Item::Static(i) => {
                let text = format!("pub static {name}: {}", scribe.write(self, &i.ty));
                self.line(context, 0, text, &context.cfgs, scribe);
            }
            syn::Item::Fn(i) => {
                let text = format!("pub {}", scribe.signature(self, &i.sig, &name));
                self.line(context, 0, text, &context.cfgs, scribe);
            }
            syn::Item::Type(i) => {
                let generics = scribe.generics(self, &i.generics);
                let text = format!("pub type {name}{generics} = {}", scribe.write(self, &i.ty));
                self.line(context, 0, text, &context.cfgs, scribe);
            }
            syn::Item::Struct(i) => self.describe_struct(context, i, scribe),
            syn::Item::Enum(i) => {
                let generics = scribe.generics(self, &i.generics);
                let clause = scribe.clause(self, &i.generics);
                let text = format!("{}pub enum {name}{generics}{clause}", marks(&i.attrs));
                self.line(context, 0, text, &context.cfgs, scribe);
                for variant in &i.variants {
                    let Some(own) = visible_cfgs(&variant.attrs) else {
                        continue;
                    };
                    let mut scribe = Scribe::new(&context.def.0);
                    scribe.declare(&i.generics);
                    let body = scribe.fields(self, &variant.fields, true);
                    let text = format!("{}{name}::{}{body}", marks(&variant.attrs), variant.ident);
                    self.line(context, 1, text, &(&context.cfgs | &own), scribe);
                }
                self.describe_derives(context, &i.attrs);
            }
            syn::Item::Trait(i) => self.describe_trait(context, i, scribe),
            other => {
                let text = format!("pub {name}: {}", scribe.write(self, other));
                self.line(context, 0, text, &context.cfgs, scribe);
            }
        }
    }

    fn describe_struct(
        &mut self,
        context: &Context<'_>,
        item: &syn::ItemStruct,
        mut scribe: Scribe,
    ) {
        let name = context.path.join("::");
        let generics = scribe.generics(self, &item.generics);
        let clause = scribe.clause(self, &item.generics);
        let is_open = item.fields.iter().all(|f| is_pub(&f.vis)) && !is_non_exhaustive(&item.attrs);
        let body = match &item.fields {
            syn::Fields::Unnamed(_) if item.fields.iter().any(|f| is_pub(&f.vis)) => {
                scribe.fields(self, &item.fields, false)
            }
            syn::Fields::Unit if is_open => String::new(),
            _ if is_open => " { all fields }".into(),
            _ => " { .. }".into(),
        };
        let text = format!(
            "{}pub struct {name}{generics}{body}{clause}",
            marks(&item.attrs)
        );
        self.line(context, 0, text, &context.cfgs, scribe);
        for field in item.fields.iter().filter(|f| is_pub(&f.vis)) {
            let (Some(own), Some(ident)) = (visible_cfgs(&field.attrs), &field.ident) else {
                continue;
            };
            let mut scribe = Scribe::new(&context.def.0);
            scribe.declare(&item.generics);
            let text = format!(
                "pub {name}::{}: {}",
                plain(ident),
                scribe.write(self, &field.ty)
            );
            self.line(context, 1, text, &(&context.cfgs | &own), scribe);
        }
        self.describe_derives(context, &item.attrs);
    }

    fn describe_trait(&mut self, context: &Context<'_>, item: &syn::ItemTrait, mut scribe: Scribe) {
        let name = context.path.join("::");
        let generics = scribe.generics(self, &item.generics);
        let bounds = scribe.write(self, &item.supertraits);
        let bounds = if bounds.is_empty() {
            bounds
        } else {
            format!(": {bounds}")
        };
        let clause = scribe.clause(self, &item.generics);
        let safety = item.unsafety.map_or("", |_| "unsafe ");
        self.line(
            context,
            0,
            format!("pub {safety}trait {name}{generics}{bounds}{clause}"),
            &context.cfgs,
            scribe,
        );
        for member in &item.items {
            let mut scribe = Scribe::new(&context.def.0);
            scribe.declare(&item.generics);
            let (attributes, text) = match member {
                syn::TraitItem::Fn(i) => {
                    let provided = if i.default.is_some() { " { .. }" } else { "" };
                    let path = format!("{name}::{}", plain(&i.sig.ident));
                    (&i.attrs, scribe.signature(self, &i.sig, &path) + provided)
                }
                syn::TraitItem::Const(i) => {
                    let provided = if i.default.is_some() { " = .." } else { "" };
                    (
                        &i.attrs,
                        format!(
                            "const {name}::{}: {}{provided}",
                            i.ident,
                            scribe.write(self, &i.ty)
                        ),
                    )
                }
                syn::TraitItem::Type(i) => {
                    let generics = scribe.generics(self, &i.generics);
                    let bounds = scribe.write(self, &i.bounds);
                    let bounds = if bounds.is_empty() {
                        bounds
                    } else {
                        format!(": {bounds}")
                    };
                    (
                        &i.attrs,
                        format!("type {name}::{}{generics}{bounds}", i.ident),
                    )
                }
                _ => continue,
            };
            if let Some(own) = visible_cfgs(attributes) {
                self.line(context, 1, text, &(&context.cfgs | &own), scribe);
            }
        }
    }

    fn describe_derives(&mut self, context: &Context<'_>, attributes: &[syn::Attribute]) {
        let parser = syn::punctuated::Punctuated::<syn::Path, syn::Token![,]>::parse_terminated;
        for attribute in attributes {
            let mut cfgs = context.cfgs.clone();
            let mut derived: Vec<syn::Path> = Vec::new();
            if attribute.path().is_ident("derive") {
                derived.extend(attribute.parse_args_with(parser).into_iter().flatten());
            } else if attribute.path().is_ident("cfg_attr") {
                let metas =
                    syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated;
                let metas: Vec<syn::Meta> = attribute
                    .parse_args_with(metas)
                    .into_iter()
                    .flatten()
                    .collect();
                let Some((cfg, then)) = metas.split_first() else {
                    continue;
                };
                match truth(cfg) {
                    Some(false) => continue,
                    Some(true) => {}
                    None => {
                        cfgs.insert(format!("[{}]", spaced(&pieces(cfg.to_token_stream()))));
                    }
                }
                for meta in then.iter().filter_map(|m| m.require_list().ok()) {
                    if meta.path.is_ident("derive") {
                        derived.extend(meta.parse_args_with(parser).into_iter().flatten());
                    }
                }
            }
            for derive in derived {
                let mut scribe = Scribe::new(&context.def.0);
                let name = short(&scribe.write(self, &derive));
                let text = format!("impl {name} for {}", context.path[1..].join("::"));
                self.line(context, 3, text, &cfgs, scribe);
            }
        }
    }

    fn describe_impl(&mut self, module: &Names, block: &syn::ItemImpl, cfgs: &Cfgs) {
        let mut subject = Scribe::new(module);
        let generics = subject.generics(self, &block.generics);
        let self_ty = subject.write(self, &block.self_ty);
        let clause = subject.clause(self, &block.generics);
        let owner = base_of(&block.self_ty).and_then(|path| {
            match self.source.resolve(module, &path, &mut Seen::new()) {
                Some(Target::Item(module, name, _)) => Some((module, name)),
                _ => None,
            }
        });
        let Some((head, _)) = &block.trait_ else {
            // Inherent: the public members of a reachable type.
            let Some((def, path, more)) = owner.and_then(|def| self.place_of(def)) else {
                return;
            };
            let members = self.members(&block.items);
            for member in &members {
                self.describe_member(&def, &path, block, module, member, &(cfgs | &more));
            }
            return;
        };
        let mut trait_scribe = Scribe::new(module);
        trait_scribe.declare(&block.generics);
        let trait_text = short(&trait_scribe.write(self, head));
        // A trait or a type argument that users cannot name makes the impl invisible.
        if !trait_scribe.unnamed.is_empty() {
            return;
        }
        let (def, path, more) = match owner {
            Some(def) => match self.place_of(def) {
                Some(place) => place,
                None => return,
            },
            // A foreign type: shown below the trait or the argument that is ours.
            None => match trait_scribe
                .ours
                .iter()
                .next()
                .cloned()
                .and_then(|def| self.place_of(def))
            {
                Some(place) => place,
                None => return,
            },
        };
        let mut types = Vec::new();
        for member in self.members(&block.items) {
            if let syn::ImplItem::Type(i) = &member {
                let generics = trait_scribe.generics(self, &i.generics);
                types.push(format!(
                    "{}{generics} = {}",
                    i.ident,
                    trait_scribe.write(self, &i.ty)
                ));
            }
        }
        let types = if types.is_empty() {
            String::new()
        } else {
            format!(" {{ {} }}", types.join(", "))
        };
        let safety = block.unsafety.map_or("", |_| "unsafe ");
        let text = format!("{safety}impl{generics} {trait_text} for {self_ty}{clause}{types}");
        trait_scribe.absorb(subject);
        let reached = self.reached[&def].keys().cloned().collect();
        self.push_reached(
            &path,
            3,
            text,
            module,
            &(cfgs | &more),
            trait_scribe,
            reached,
        );
    }

    fn place_of(&self, def: Def) -> Option<(Def, Names, Cfgs)> {
        let (path, cfgs) = self.canonical(&def)?;
        let (path, mut cfgs) = (path.clone(), cfgs.clone());
        let scope = &self.source.modules[&def.0];
        let item = scope
            .items
            .iter()
            .find(|i| named(i).is_some_and(|(name, _)| name == def.1));
        // The conditions of the type are those of its impls, if there is only one such type.
        cfgs.extend(
            item.and_then(|i| visible_cfgs(attributes(i)))
                .into_iter()
                .flatten(),
        );
        Some((def, path, cfgs))
    }

    /// The items of an impl, those made by macros included.
    fn members(&self, items: &[syn::ImplItem]) -> Vec<syn::ImplItem> {
        struct Made(Vec<syn::ImplItem>);
        impl Parse for Made {
            fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
                let mut items = Vec::new();
                while !input.is_empty() {
                    items.push(input.parse()?);
                }
                Ok(Self(items))
            }
        }
        let mut members = Vec::new();
        for item in items {
            match item {
                syn::ImplItem::Macro(item) => {
                    if let Some(Made(made)) = self.source.expand(&item.mac) {
                        members.extend(self.members(&made));
                    }
                }
                item => members.push(item.clone()),
            }
        }
        members
    }

    fn describe_member(
        &mut self,
        def: &Def,
        path: &Names,
        block: &syn::ItemImpl,
        module: &Names,
        member: &syn::ImplItem,
        cfgs: &Cfgs,
    ) {
        let name = path.join("::");
        let mut scribe = Scribe::new(module);
        let generics = scribe.generics(self, &block.generics);
        let clause = scribe.clause(self, &block.generics);
        let (attributes, vis, text) = match member {
            syn::ImplItem::Fn(i) => {
                let path = format!("{name}::{}", plain(&i.sig.ident));
                (
                    &i.attrs,
                    &i.vis,
                    format!("pub {}", scribe.signature(self, &i.sig, &path)),
                )
            }
            syn::ImplItem::Const(i) => {
                let text = format!(
                    "pub const {name}::{}: {}",
                    i.ident,
                    scribe.write(self, &i.ty)
                );
                (&i.attrs, &i.vis, text)
            }
            _ => return,
        };
        let (true, Some(own)) = (is_pub(vis), visible_cfgs(attributes)) else {
            return;
        };
        let of = if generics.is_empty() {
            String::new()
        } else {
            format!(
                " (impl{generics} {}{clause})",
                scribe.write(self, &block.self_ty)
            )
        };
        let reached = self.reached[def].keys().cloned().collect();
        self.push_reached(path, 2, text + &of, module, &(cfgs | &own), scribe, reached);
    }
}

struct Context<'a> {
    def: &'a Def,
    path: &'a Names,
    cfgs: Cfgs,
    reached: Vec<Names>,
}

fn joined(path: &[String], name: &str) -> Names {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

fn is_non_exhaustive(attributes: &[syn::Attribute]) -> bool {
    attributes
        .iter()
        .any(|a| a.path().is_ident("non_exhaustive"))
}

fn marks(attributes: &[syn::Attribute]) -> &'static str {
    if is_non_exhaustive(attributes) {
        "#[non_exhaustive] "
    } else {
        ""
    }
}

/// Traits that may be derived read the same when written by hand.
fn short(name: &str) -> String {
    const DERIVABLE: &[&str] = &[
        "Clone",
        "Copy",
        "Debug",
        "Default",
        "Eq",
        "Hash",
        "Ord",
        "PartialEq",
        "PartialOrd",
    ];
    let (path, arguments) = name
        .split_once('<')
        .map_or((name, ""), |(path, _)| (path, &name[path.len()..]));
    match path.rsplit_once("::") {
        Some((_, last)) if DERIVABLE.contains(&last) => format!("{last}{arguments}"),
        _ => name.to_owned(),
    }
}

/// The path of a type behind references.
fn base_of(ty: &syn::Type) -> Option<Names> {
    match ty {
        syn::Type::Path(ty) if ty.qself.is_none() => {
            Some(ty.path.segments.iter().map(|s| plain(&s.ident)).collect())
        }
        syn::Type::Reference(ty) => base_of(&ty.elem),
        syn::Type::Paren(ty) => base_of(&ty.elem),
        syn::Type::Group(ty) => base_of(&ty.elem),
        _ => None,
    }
}

// ---------------------------------------------------------------------------- the signatures

/// Writes signatures with every name resolved, and notes what they name.
struct Scribe {
    module: Names,
    parameters: BTreeSet<String>,
    crates: BTreeSet<String>,
    ours: BTreeSet<Def>,
    unnamed: BTreeSet<String>,
}

impl Scribe {
    fn new(module: &Names) -> Self {
        Self {
            module: module.clone(),
            parameters: BTreeSet::new(),
            crates: BTreeSet::new(),
            ours: BTreeSet::new(),
            unnamed: BTreeSet::new(),
        }
    }

    fn absorb(&mut self, other: Self) {
        self.crates.extend(other.crates);
        self.unnamed.extend(other.unnamed);
    }

    fn declare(&mut self, generics: &syn::Generics) {
        self.parameters
            .extend(generics.type_params().map(|p| plain(&p.ident)));
        self.parameters
            .extend(generics.const_params().map(|p| plain(&p.ident)));
    }

    fn generics(&mut self, api: &Api<'_>, generics: &syn::Generics) -> String {
        self.declare(generics);
        self.write(api, generics)
    }

    fn clause(&mut self, api: &Api<'_>, generics: &syn::Generics) -> String {
        let clause = self.write(api, &generics.where_clause);
        if clause.is_empty() {
            clause
        } else {
            format!(" {clause}")
        }
    }

    fn signature(&mut self, api: &Api<'_>, signature: &syn::Signature, path: &str) -> String {
        const NAME: &str = "__name__";
        self.declare(&signature.generics);
        let mut signature = signature.clone();
        signature.ident = Ident::new(NAME, Span::call_site());
        for input in &mut signature.inputs {
            match input {
                syn::FnArg::Typed(input) => {
                    let name = match &*input.pat {
                        syn::Pat::Ident(name) => name.ident.clone(),
                        _ => Ident::new("_arg", Span::call_site()),
                    };
                    *input.pat = syn::parse_quote!(#name);
                    input.attrs.clear();
                }
                // `mut self` is the body's own affair.
                syn::FnArg::Receiver(receiver) => receiver.attrs.clear(),
            }
        }
        self.write(api, &signature)
            .replacen(NAME, path, 1)
            .replacen("(mut self", "(self", 1)
    }

    fn fields(&mut self, api: &Api<'_>, fields: &syn::Fields, all: bool) -> String {
        let mut shown = Vec::new();
        for field in fields {
            let ty = if all || is_pub(&field.vis) {
                self.write(api, &field.ty)
            } else {
                "_".into()
            };
            match &field.ident {
                Some(name) => shown.push(format!("{}: {ty}", plain(name))),
                None => shown.push(ty),
            }
        }
        match fields {
            syn::Fields::Named(_) => format!(" {{ {} }}", shown.join(", ")),
            syn::Fields::Unnamed(_) => format!("({})", shown.join(", ")),
            syn::Fields::Unit => String::new(),
        }
    }

    fn write(&mut self, api: &Api<'_>, what: &impl ToTokens) -> String {
        let pieces = pieces(what.to_token_stream());
        let mut out = Vec::new();
        let mut at = 0;
        while at < pieces.len() {
            let after = at.checked_sub(1).map_or("", |i| pieces[i].as_str());
            if !is_word(&pieces[at]) || after == "::" || after == "." {
                out.push(pieces[at].clone());
                at += 1;
                continue;
            }
            let mut path = vec![pieces[at].clone()];
            at += 1;
            while at + 1 < pieces.len() && pieces[at] == "::" && is_word(&pieces[at + 1]) {
                path.push(pieces[at + 1].clone());
                at += 2;
            }
            let next = pieces.get(at).map_or("", String::as_str);
            out.push(self.rename(api, &path, next));
        }
        spaced(&out)
    }

    /// The name that users know, of a path in a signature.
    fn rename(&mut self, api: &Api<'_>, path: &[String], next: &str) -> String {
        let written = path.join("::");
        let is_type = path.len() > 1 || path[0].starts_with(char::is_uppercase);
        // `name: Type`, `T: Bound` and `Item = Type` declare or bind.
        let is_bound = path.len() == 1 && matches!(next, ":" | "=");
        if !is_type || is_bound || path[0] == "Self" || self.parameters.contains(&path[0]) {
            return written;
        }
        match api
            .source
            .resolve(&self.module.clone(), path, &mut Seen::new())
        {
            Some(Target::Item(module, name, rest)) => {
                let def = (module, name);
                let shown = match (api.canonical(&def), api.source.alias(&def)) {
                    (Some((public, _)), _) => public[1..].to_vec(),
                    // A private alias stands for what it says.
                    (None, Some(ty)) => {
                        let mut scribe = Self::new(&def.0);
                        let text = scribe.write(api, ty);
                        self.ours.extend(std::mem::take(&mut scribe.ours));
                        self.absorb(scribe);
                        return text;
                    }
                    (None, None) => {
                        let private =
                            [vec!["crate".into()], def.0.clone(), vec![def.1.clone()]].concat();
                        // A sealed trait is private on purpose.
                        if !private.iter().any(|s| s.to_lowercase().contains("sealed")) {
                            self.unnamed.insert(private.join("::"));
                        }
                        private
                    }
                };
                self.ours.insert(def);
                [shown, rest].concat().join("::")
            }
            Some(Target::Foreign(path)) => {
                let path = original(&path);
                self.crates.insert(path[0].clone());
                path.join("::")
            }
            Some(Target::Module(_)) => written,
            None => {
                let path = original(path);
                if path[0].starts_with(char::is_lowercase) && !is_primitive(&path[0]) {
                    self.crates.insert(path[0].clone());
                }
                path.join("::")
            }
        }
    }
}

/// rustls is the same crate when it is reached through its tokio adapter.
fn original(path: &[String]) -> &[String] {
    match path {
        [adapter, rest @ ..]
            if adapter == "tokio_rustls" && rest.first().is_some_and(|s| s == "rustls") =>
        {
            rest
        }
        path => path,
    }
}

fn is_primitive(name: &str) -> bool {
    const PRIMITIVES: &[&str] = &[
        "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32",
        "i64", "i128", "isize", "f32", "f64", "self", "super", "crate",
    ];
    PRIMITIVES.contains(&name)
}

fn is_word(piece: &str) -> bool {
    piece.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Tokens as text, with `::`, `->`, `..` and lifetimes in one piece each.
fn pieces(tokens: TokenStream) -> Vec<String> {
    let mut out = Vec::new();
    let mut partial = String::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                out.push(open.to_owned());
                out.extend(pieces(group.stream()));
                out.push(close.to_owned());
            }
            TokenTree::Punct(punct) => {
                partial.push(punct.as_char());
                let joins = punct.spacing() == Spacing::Joint
                    && matches!(partial.as_str(), ":" | "-" | "." | ".." | "=" | "'");
                if !joins {
                    out.push(std::mem::take(&mut partial));
                }
            }
            other => out.push(std::mem::take(&mut partial) + &other.to_string()),
        }
    }
    out.retain(|piece| !piece.is_empty());
    out
}

/// The pieces in one line, with the spaces rustfmt would put.
fn spaced(pieces: &[String]) -> String {
    let mut line = String::new();
    let mut before = "";
    for (at, piece) in pieces.iter().enumerate() {
        let piece = piece.as_str();
        let next = pieces.get(at + 1).map_or("", String::as_str);
        if piece == "," && matches!(next, ")" | ">" | "}" | "]" | "") {
            continue;
        }
        let is_keyword = matches!(
            before,
            "where" | "in" | "mut" | "dyn" | "impl" | "as" | "const" | "for"
        );
        let tight = match piece {
            "," | ";" | ":" | "::" | ")" | "]" | ">" | "." => true,
            "<" => {
                before == "::"
                    || (is_word(before) && (!is_keyword || matches!(before, "for" | "impl")))
            }
            "(" => (is_word(before) && !is_keyword) || before == ">",
            _ => false,
        };
        let after = matches!(
            before,
            "" | "(" | "[" | "<" | "&" | "::" | "!" | "?" | "*" | "#" | "."
        );
        if !tight && !after {
            line.push(' ');
        }
        line.push_str(piece);
        before = piece;
    }
    line
}

// ------------------------------------------------------------------------ macros that make items

/// One arm of a `macro_rules!`.
struct Rule {
    pattern: Vec<Pattern>,
    body: TokenStream,
}

enum Pattern {
    Token(TokenTree),
    Group(Delimiter, Vec<Self>),
    Variable(String, String),
    Repeat {
        patterns: Vec<Self>,
        separator: Option<TokenTree>,
        at_most_one: bool,
    },
}

#[derive(Clone)]
enum Bound {
    One(TokenStream),
    Many(Vec<Self>),
}

type Bindings = BTreeMap<String, Bound>;

fn rules_of(tokens: TokenStream) -> Vec<Rule> {
    let groups: Vec<TokenStream> = tokens
        .into_iter()
        .filter_map(|t| {
            if let TokenTree::Group(g) = t {
                Some(g.stream())
            } else {
                None
            }
        })
        .collect();
    let arms = groups.chunks_exact(2);
    arms.map(|arm| Rule {
        pattern: patterns_of(arm[0].clone()),
        body: arm[1].clone(),
    })
    .collect()
}

fn is_punct(token: Option<&TokenTree>, ch: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == ch)
}

/// After the group of a `$(..)`: its separator, whether it is `?`, and the tokens these take.
fn repetition(tokens: &[TokenTree]) -> (Option<TokenTree>, bool, usize) {
    let is_operator =
        |token: Option<&TokenTree>| ['*', '+', '?'].iter().any(|c| is_punct(token, *c));
    if is_operator(tokens.first()) {
        (None, is_punct(tokens.first(), '?'), 1)
    } else {
        (tokens.first().cloned(), false, 2)
    }
}

fn patterns_of(tokens: TokenStream) -> Vec<Pattern> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut patterns = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_punct(tokens.get(at), '$') {
            match (tokens.get(at + 1), tokens.get(at + 3)) {
                (Some(TokenTree::Group(group)), _) => {
                    let (separator, at_most_one, used) = repetition(&tokens[at + 2..]);
                    let patterns_within = patterns_of(group.stream());
                    patterns.push(Pattern::Repeat {
                        patterns: patterns_within,
                        separator,
                        at_most_one,
                    });
                    at += 2 + used;
                    continue;
                }
                (Some(TokenTree::Ident(name)), Some(TokenTree::Ident(fragment)))
                    if is_punct(tokens.get(at + 2), ':') =>
                {
                    patterns.push(Pattern::Variable(plain(name), plain(fragment)));
                    at += 4;
                    continue;
                }
                _ => {}
            }
        }
        patterns.push(match &tokens[at] {
            TokenTree::Group(group) => {
                Pattern::Group(group.delimiter(), patterns_of(group.stream()))
            }
            token => Pattern::Token(token.clone()),
        });
        at += 1;
    }
    patterns
}

fn same(a: &TokenTree, b: &TokenTree) -> bool {
    match (a, b) {
        (TokenTree::Punct(a), TokenTree::Punct(b)) => a.as_char() == b.as_char(),
        _ => a.to_string() == b.to_string(),
    }
}

/// What the variables stand for, and how many tokens were taken.
fn matched(patterns: &[Pattern], input: &[TokenTree]) -> Option<(Bindings, usize)> {
    let mut bound = Bindings::new();
    let mut at = 0;
    for pattern in patterns {
        let rest = &input[at..];
        match pattern {
            Pattern::Token(token) => {
                if !same(token, rest.first()?) {
                    return None;
                }
                at += 1;
            }
            Pattern::Group(delimiter, patterns) => {
                let TokenTree::Group(group) = rest.first()? else {
                    return None;
                };
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let (found, used) = matched(patterns, &inner)?;
                if group.delimiter() != *delimiter || used < inner.len() {
                    return None;
                }
                bound.extend(found);
                at += 1;
            }
            Pattern::Variable(name, fragment) => {
                let used = fragment_len(fragment, rest)?;
                bound.insert(
                    name.clone(),
                    Bound::One(rest[..used].iter().cloned().collect()),
                );
                at += used;
            }
            Pattern::Repeat {
                patterns,
                separator,
                at_most_one,
            } => {
                let mut rounds: Vec<Bindings> = Vec::new();
                loop {
                    let mut start = at;
                    if let (false, Some(separator)) = (rounds.is_empty(), separator) {
                        if !input.get(at).is_some_and(|token| same(token, separator)) {
                            break;
                        }
                        start += 1;
                    }
                    match matched(patterns, &input[start..]) {
                        Some((found, used)) if used > 0 => {
                            rounds.push(found);
                            at = start + used;
                        }
                        _ => break,
                    }
                    if *at_most_one {
                        break;
                    }
                }
                for name in variables(patterns) {
                    let many = rounds
                        .iter()
                        .filter_map(|round| round.get(&name).cloned())
                        .collect();
                    bound.insert(name, Bound::Many(many));
                }
            }
        }
    }
    Some((bound, at))
}

fn variables(patterns: &[Pattern]) -> Vec<String> {
    let of = |pattern: &Pattern| match pattern {
        Pattern::Token(_) => vec![],
        Pattern::Variable(name, _) => vec![name.clone()],
        Pattern::Group(_, patterns) | Pattern::Repeat { patterns, .. } => variables(patterns),
    };
    patterns.iter().flat_map(of).collect()
}

/// How many tokens a fragment takes from the front of `input`.
fn fragment_len(fragment: &str, input: &[TokenTree]) -> Option<usize> {
    fn parsed<T>(
        input: &[TokenTree],
        parse: fn(ParseStream<'_>) -> syn::Result<T>,
    ) -> Option<usize> {
        let parser = |stream: ParseStream<'_>| {
            parse(stream)?;
            stream.parse::<TokenStream>()
        };
        let rest = parser.parse2(input.iter().cloned().collect()).ok()?;
        Some(input.len() - rest.into_iter().count())
    }
    match fragment {
        "ident" => matches!(input.first()?, TokenTree::Ident(_)).then_some(1),
        "tt" if is_punct(input.first(), '\'') => Some(2),
        "tt" => input.first().map(|_| 1),
        "lifetime" => is_punct(input.first(), '\'').then_some(2),
        "literal" => parsed(input, syn::Lit::parse),
        "ty" => parsed(input, syn::Type::parse),
        "path" => parsed(input, syn::Path::parse),
        "expr" => parsed(input, syn::Expr::parse),
        "block" => parsed(input, syn::Block::parse),
        "vis" => parsed(input, syn::Visibility::parse),
        "meta" => parsed(input, syn::Meta::parse),
        "item" => parsed(input, syn::Item::parse),
        "pat" => parsed(input, syn::Pat::parse_multi),
        _ => None,
    }
}

fn transcribed(body: TokenStream, bound: &Bindings) -> TokenStream {
    let tokens: Vec<TokenTree> = body.into_iter().collect();
    let mut out = TokenStream::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_punct(tokens.get(at), '$') {
            match tokens.get(at + 1) {
                Some(TokenTree::Group(group)) => {
                    let (separator, _, used) = repetition(&tokens[at + 2..]);
                    let rounds = rounds_of(group.stream(), bound);
                    for round in 0..rounds {
                        let mut bound = bound.clone();
                        for value in bound.values_mut() {
                            if let Bound::Many(many) = value
                                && many.len() == rounds
                            {
                                *value = many[round].clone();
                            }
                        }
                        if round > 0 {
                            out.extend(separator.clone());
                        }
                        out.extend(transcribed(group.stream(), &bound));
                    }
                    at += 2 + used;
                    continue;
                }
                Some(TokenTree::Ident(name)) => match bound.get(&plain(name)) {
                    Some(Bound::One(tokens)) => {
                        out.extend(tokens.clone());
                        at += 2;
                        continue;
                    }
                    _ if name == "crate" => {
                        at += 1;
                        continue;
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        match &tokens[at] {
            TokenTree::Group(group) => {
                let inner = transcribed(group.stream(), bound);
                out.extend([TokenTree::Group(proc_macro2::Group::new(
                    group.delimiter(),
                    inner,
                ))]);
            }
            token => out.extend([token.clone()]),
        }
        at += 1;
    }
    out
}

/// How often a `$(..)` repeats: as often as the variables in it.
fn rounds_of(body: TokenStream, bound: &Bindings) -> usize {
    let tokens: Vec<TokenTree> = body.into_iter().collect();
    let rounds = tokens
        .iter()
        .enumerate()
        .filter_map(|(at, token)| match token {
            TokenTree::Ident(name) if at > 0 && is_punct(tokens.get(at - 1), '$') => {
                match bound.get(&plain(name))? {
                    Bound::Many(many) => Some(many.len()),
                    Bound::One(_) => None,
                }
            }
            TokenTree::Group(group) => Some(rounds_of(group.stream(), bound)),
            _ => None,
        });
    rounds.max().unwrap_or(0)
}

// ------------------------------------------------------------------------------- the tests

const SNAPSHOT: &str = "tests/public_api.txt";
const BLESS: &str = "FIRSTBYTE_BLESS=1 cargo test --test public_api";

/// The lines of the snapshot, and what no signature may do.
struct Report {
    lines: Vec<String>,
    blind: Vec<String>,
    refused: Vec<String>,
}

fn report(root: &Path) -> Report {
    let source = Source::read(root);
    let api = Api::of(&source);
    let mut refused = Vec::new();
    for line in &api.lines {
        for krate in &line.crates {
            if let Some(why) = refusal(krate, line) {
                refused.push(format!("  {}\n      names {krate}: {why}", line.text));
            }
        }
        for name in &line.unnamed {
            refused.push(format!(
                "  {}\n      names {name}, which users cannot: re-export it",
                line.text
            ));
        }
    }
    let lines = api.lines.into_iter().map(|line| line.text).collect();
    Report {
        lines,
        blind: source.blind,
        refused,
    }
}

/// What was added and removed, line by line.
struct Difference<'a> {
    old: BTreeSet<&'a str>,
    new: BTreeSet<&'a str>,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 60;
        let removed = self.old.difference(&self.new).map(|line| ('-', line));
        let added = self.new.difference(&self.old).map(|line| ('+', line));
        for (sign, line) in removed.clone().chain(added.clone()).take(SHOWN) {
            writeln!(f, "{sign} {line}")?;
        }
        match (removed.count() + added.count()).saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more lines"),
        }
    }
}

#[test]
fn the_public_api_is_the_snapshot() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let report = report(root);
    assert!(
        report.blind.is_empty(),
        "this test cannot see through:\n  {}",
        report.blind.join("\n  ")
    );
    assert!(
        report.lines.len() >= 100,
        "only {} lines: is the test blind?",
        report.lines.len()
    );
    let text = report.lines.join("\n") + "\n";
    let file = root.join(SNAPSHOT);
    if std::env::var_os("FIRSTBYTE_BLESS").is_some() {
        fs::write(&file, text).expect("the snapshot can be written");
        return;
    }
    let snapshot = fs::read_to_string(&file)
        .unwrap_or_default()
        .replace('\r', "");
    let difference = Difference {
        old: snapshot.lines().collect(),
        new: text.lines().collect(),
    };
    assert!(
        snapshot == text,
        "the public API is not that of {SNAPSHOT}:\n{difference}If this is meant, write it anew:\n  {BLESS}\n"
    );
}

#[test]
fn signatures_name_only_the_agreed_crates() {
    let refused = report(Path::new(env!("CARGO_MANIFEST_DIR"))).refused;
    assert!(
        refused.is_empty(),
        "{} public signatures name what they must not:\n{}",
        refused.len(),
        refused.join("\n")
    );
}

// ------------------------------------------------- the reading itself, over a crate made for it

/// A crate in a temporary directory.
struct Fake(PathBuf);

impl Fake {
    fn new(files: &[(&str, &str)]) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let unique = format!(
            "firstbyte-api-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let root = std::env::temp_dir().join(unique);
        for (name, text) in files {
            let path = root.join("src").join(name);
            fs::create_dir_all(path.parent().expect("it is below src"))
                .expect("the directory is made");
            fs::write(path, text).expect("the file is written");
        }
        Self(root)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn assert_api(files: &[(&str, &str)], expected: &[&str]) {
    let report = report(&Fake::new(files).0);
    assert_eq!(report.blind, Vec::<String>::new());
    assert_eq!(report.lines, expected, "\n{}", report.lines.join("\n"));
}

fn refused(files: &[(&str, &str)]) -> Vec<String> {
    report(&Fake::new(files).0).refused
}

#[test]
fn reexports_globs_and_renames_are_followed() {
    let lib = "mod a; pub mod b; pub use a::*; pub use a::inner::Deep as Low; pub use http::Method;
        pub use b::C as D; #[doc(hidden)] pub use a::secret; #[cfg(test)] pub mod tests { pub fn t() {} }";
    let a = "pub mod inner { pub struct Deep; pub(crate) struct Not; } pub fn f() {} fn g() {} pub(crate) fn h() {}
        pub(crate) mod secret { pub struct S; } #[doc(hidden)] pub fn hidden() {} pub use self::e::E::*;
        mod e { pub enum E { V } }";
    let expected = [
        "pub use firstbyte::* = E",
        "pub struct firstbyte::Low",
        "pub use firstbyte::Method = http::Method",
        "pub mod firstbyte::b",
        "pub struct firstbyte::D",
        "pub fn firstbyte::f()",
        "pub mod firstbyte::inner",
    ];
    let report = report(&Fake::new(&[("lib.rs", lib), ("a.rs", a), ("b.rs", "pub struct C;")]).0);
    for line in expected {
        assert!(
            report.lines.iter().any(|l| l == line),
            "{line} in {:#?}",
            report.lines
        );
    }
    assert!(
        report.lines.contains(&"pub use firstbyte::b::C = D".into()),
        "{:#?}",
        report.lines
    );
    let text = report.lines.join("\n");
    for absent in ["Not", "::g", "::h", "secret", "hidden", "::S", "tests"] {
        assert!(!text.contains(absent), "{absent} in\n{text}");
    }
}

#[test]
fn types_show_what_is_public() {
    assert_api(
        &[(
            "lib.rs",
            "#[derive(Clone, Debug)] #[non_exhaustive] pub struct Limits { pub max: usize, #[doc(hidden)] pub x: u8 }
             #[cfg_attr(feature = \"json\", derive(serde::Serialize))] pub struct Pair(pub u8, String);
             pub struct Open { pub a: [u8; 4] } struct Private { pub b: u8 }
             #[non_exhaustive] pub enum E<T: Send> { A, B(Vec<T>), #[non_exhaustive] C { x: u8 }, #[doc(hidden)] D }
             pub type R<T = ()> = std::result::Result<T, Limits>; pub const MAX: usize = 1; pub static S: &str = \"\";",
        )],
        &[
            "#[non_exhaustive] pub enum firstbyte::E<T: Send>",
            "#[non_exhaustive] firstbyte::E::C { x: u8 }",
            "firstbyte::E::A",
            "firstbyte::E::B(Vec<T>)",
            "#[non_exhaustive] pub struct firstbyte::Limits { .. }",
            "pub firstbyte::Limits::max: usize",
            "impl Clone for Limits",
            "impl Debug for Limits",
            "pub const firstbyte::MAX: usize",
            "pub struct firstbyte::Open { all fields }",
            "pub firstbyte::Open::a: [u8; 4]",
            "pub struct firstbyte::Pair(u8, _)",
            "impl serde::Serialize for Pair [feature = \"json\"]",
            "pub type firstbyte::R<T = ()> = std::result::Result<T, Limits>",
            "pub static firstbyte::S: &str",
        ],
    );
}

#[test]
fn impls_are_found_wherever_they_are() {
    assert_api(
        &[
            ("lib.rs", "mod client; mod far; mod error; pub use client::Client; pub use error::Error as Fault;"),
            ("error.rs", "pub struct Error; pub(crate) struct Inner; type Boxed = Box<Inner>;"),
            ("client.rs", "pub struct Client<B = ()>(B);"),
            (
                "far/mod.rs",
                "use crate::{client::*, error::{self, Error}}; use std::{fmt, time::Duration as D};
                 impl<B: Send> Client<B> where B: 'static {
                     pub async fn send(mut self, mut a: D, (x, y): (u8, &str)) -> Result<(), Error> {}
                     #[cfg(feature = \"json\")] pub const fn json<'a, T: ?Sized + 'a>(&'a self, f: impl for<'b> Fn(&'b T) -> bool) {}
                     pub const A: u8 = 1; fn private(&self) {} pub(crate) fn inner(&self) {} #[cfg(not(test))] pub fn real(&mut self) {}
                 }
                 impl fmt::Debug for Client {} impl fmt::Display for crate::Client {}
                 impl<'a> IntoIterator for &'a Client { type Item = error::Error; type IntoIter = <Vec<u8> as IntoIterator>::IntoIter; }
                 impl From<Client> for std::string::String {} impl From<error::Inner> for Client {}
                 trait Local {} impl Local for Client {} #[cfg(test)] impl Drop for Client {}",
            ),
        ],
        &[
            "pub struct firstbyte::Client<B = ()> { .. }",
            "pub async fn firstbyte::Client::send(self, a: std::time::Duration, _arg: (u8, &str)) -> Result<(), Fault> (impl<B: Send> Client<B> where B: 'static)",
            "pub const firstbyte::Client::A: u8 (impl<B: Send> Client<B> where B: 'static)",
            "pub const fn firstbyte::Client::json<'a, T: ?Sized + 'a>(&'a self, f: impl for<'b> Fn(&'b T) -> bool) (impl<B: Send> Client<B> where B: 'static) [feature = \"json\"]",
            "pub fn firstbyte::Client::real(&mut self) (impl<B: Send> Client<B> where B: 'static)",
            "impl Debug for Client",
            "impl From<Client> for std::string::String",
            "impl std::fmt::Display for Client",
            "impl<'a> IntoIterator for &'a Client { Item = Fault, IntoIter = <Vec<u8> as IntoIterator>::IntoIter }",
            "pub struct firstbyte::Fault",
        ],
    );
}

#[test]
fn traits_show_their_items() {
    assert_api(
        &[(
            "lib.rs",
            "#[cfg(unix)] pub mod io { pub trait Dial: Send + 'static { type Out<'a>: Sized; const N: u8 = 1;
                 fn dial(&self, _: u8) -> Self::Out<'_>; fn close(self) where Self: Sized {} #[doc(hidden)] fn h() {} } }
             impl<T: Send> io::Dial for T { type Out<'a> = u8; }",
        )],
        &[
            "pub mod firstbyte::io [unix]",
            "pub trait firstbyte::io::Dial: Send + 'static [unix]",
            "const firstbyte::io::Dial::N: u8 = .. [unix]",
            "fn firstbyte::io::Dial::close(self) where Self: Sized { .. } [unix]",
            "fn firstbyte::io::Dial::dial(&self, _arg: u8) -> Self::Out<'_> [unix]",
            "type firstbyte::io::Dial::Out<'a>: Sized [unix]",
            "impl<T: Send> io::Dial for T { Out<'a> = u8 } [unix]",
        ],
    );
}

#[test]
fn items_made_by_macros_are_seen() {
    assert_api(
        &[(
            "lib.rs",
            "macro_rules! names { ($($(#[$m:meta])* $name:ident = $text:literal),+ $(,)?) => {
                 #[derive(Copy)] pub enum Name { $($(#[$m])* $name,)+ }
                 impl Name { $crate::getters!(a: u8, b: Vec<u8>); }
             } }
             macro_rules! getters { () => {}; ($($f:ident : $t:ty),*) => { $(pub fn $f(&self) -> $t {})* } }
             names! { /// One.
                 One = \"1\", Two = \"2\", }
             #[macro_export] macro_rules! open { () => {} }",
        )],
        &[
            "pub enum firstbyte::Name",
            "firstbyte::Name::One",
            "firstbyte::Name::Two",
            "pub fn firstbyte::Name::a(&self) -> u8",
            "pub fn firstbyte::Name::b(&self) -> Vec<u8>",
            "impl Copy for Name",
            "macro firstbyte::open!",
        ],
    );
    let blind = report(
        &Fake::new(&[(
            "lib.rs",
            "bitflags! { pub struct F: u8 {} } thread_local! { static X: u8 = 1; }",
        )])
        .0,
    )
    .blind;
    assert_eq!(blind, ["src/lib.rs: the public items that bitflags! makes"]);
}

#[test]
fn foreign_crates_are_refused_in_signatures() {
    for bad in [
        "pub fn f(_: rustls::ClientConfig) {}",
        "use rustls::ClientConfig as C; pub struct S { pub c: Option<C> }",
        "mod p { pub(crate) use h2::Reason; } use p::Reason; pub enum E { V(Reason) }",
        "pub struct E; impl From<h2::Error> for E {}",
        "pub struct E; mod m { use hickory_resolver as hr; impl From<hr::Error> for crate::E {} }",
        "pub use url::Url;",
        "pub use socket2;",
        "type B = papaya::HashMap<u8, u8>; pub type A = B;",
        "pub trait T { fn f() -> arc_swap::Guard; }",
        "#[derive(httparse::Derive)] pub struct S;",
        "pub fn f() -> impl tokio::io::AsyncRead {}",
        "mod tls { pub fn f(_: rustls::Error) {} } pub use tls::f;",
    ] {
        let found = refused(&[("lib.rs", bad)]);
        assert_eq!(found.len(), 1, "{bad}: {found:#?}");
    }
    for good in [
        "use http::{self, Method}; pub fn f(_: Method, _: http::Uri, _: bytes::Bytes) -> std::io::Result<()> {}",
        "pub mod tls { use tokio_rustls::rustls; pub fn f(_: rustls::Error, _: tokio_rustls::rustls::Error) {} } pub mod danger { pub use rustls::Error; }",
        "mod io { pub struct Transport; impl From<tokio::net::TcpStream> for Transport {} } pub use io::Transport;",
        "pub struct S { c: h2::Error } fn f(_: url::Url) {} impl S { pub(crate) fn g(_: url::Url) {} }",
        "pub fn f(x: u8) -> u8 { let _ = h2::Error; x }",
    ] {
        assert_eq!(refused(&[("lib.rs", good)]), Vec::<String>::new(), "{good}");
    }
}

#[test]
fn types_that_users_cannot_name_are_refused() {
    assert_eq!(
        refused(&[(
            "lib.rs",
            "mod a { pub struct Lost; } pub fn f() -> a::Lost {}"
        )])
        .len(),
        1
    );
    let fine = "mod sealed { pub trait Sealed {} } pub trait T: sealed::Sealed {} mod a { pub type B = Box<u8>; } pub fn f(_: a::B) {}";
    assert_eq!(refused(&[("lib.rs", fine)]), Vec::<String>::new());
}

#[test]
fn a_difference_is_shown_by_lines() {
    let difference = Difference {
        old: BTreeSet::from(["a", "b"]),
        new: BTreeSet::from(["b", "c"]),
    };
    assert_eq!(difference.to_string(), "- a\n+ c\n");
}
