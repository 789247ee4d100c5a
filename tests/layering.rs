//! Imports point down only, and there are no cycles at all.
//!
//! This test reads `src` as text (syn, no compiler), resolves every path that starts at this crate
//! (`use`, expressions, types, attributes, the tokens of macros, names brought in by imports and
//! globs, re-exports at the crate root) to the module that defines the name, and holds the result
//! against [`LAYERS`]. Between the files of a module's directory the graph must be acyclic too.
//!
//! A re-export of a child in its parent (`pub(crate) use child::Name`) is no reference of the
//! parent to the child, and who takes `Name` from the parent refers to the child. A
//! `#[cfg(test)] mod` is left out if a comment above or inside it says why: `// layering: reason`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

// --------------------------------------------------------------------------------- the rules

/// Every top-level module and its layer, from the ground up. A new module is added here.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "ground",
        &[
            "timing",
            "error",
            "close_reason",
            "origin",
            "body",
            "event",
            "io",
            "http_head",
            "histogram",
            "clock",
            "metrics",
            "sync",
            "text",
        ],
    ),
    ("phases", &["dns", "tcp", "tls", "proxy"]),
    ("protocols", &["http1", "http2", "websocket", "sse"]),
    ("connection", &["connection"]),
    ("pool", &["pool"]),
    ("client", &["client"]),
];

const PHASES: usize = 1;
const PROTOCOLS: usize = 2;

fn layer_of(module: &str) -> Option<usize> {
    LAYERS
        .iter()
        .position(|(_, modules)| modules.contains(&module))
}

/// The rule that a reference between two top-level modules breaks, if any.
fn broken_rule(from: &str, to: &str) -> Option<String> {
    let (from, to) = (layer_of(from)?, layer_of(to)?);
    let name = |layer: usize| LAYERS[layer].0;
    if from < to {
        return Some(format!(
            "imports point down only: {} is below {}; hand the lower module a value or a small trait",
            name(from),
            name(to)
        ));
    }
    match (from, to) {
        (PHASES, PHASES) => {
            Some("phases know nothing of each other; connection is where they meet".into())
        }
        (PROTOCOLS, PROTOCOLS) => {
            Some("protocols know nothing of each other; connection is where they meet".into())
        }
        (PROTOCOLS, PHASES) => Some(
            "protocols speak over any AsyncRead + AsyncWrite and know no DNS, TCP, TLS or proxy"
                .into(),
        ),
        _ => None,
    }
}

const NO_CYCLES: &str = "no cycles";

/// One broken rule, with the line to change.
#[derive(Debug)]
struct Violation {
    file: PathBuf,
    line: usize,
    from: String,
    to: String,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {} -> {}: {}",
            self.file.display(),
            self.line,
            self.from,
            self.to,
            self.rule
        )
    }
}

/// Names of modules from the crate root down; the root itself is empty.
type Names = Vec<String>;

/// A reference between two files of the crate, each named by its module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: Names,
    to: Names,
    file: PathBuf,
    line: usize,
    path: String,
}

/// What was read, so that the test can show that it read something.
struct Survey {
    files: usize,
    edges: BTreeSet<Edge>,
    violations: Vec<Violation>,
}

impl Survey {
    fn has_edge(&self, from: &str, to: &str) -> bool {
        self.edges.iter().any(|e| {
            e.from.first().is_some_and(|m| m == from) && e.to.first().is_some_and(|m| m == to)
        })
    }
}

fn check(root: &Path) -> Vec<Violation> {
    survey(root).violations
}

fn survey(root: &Path) -> Survey {
    let mut tree = Tree::read(root);
    let edges = tree.edges();
    let mut violations = std::mem::take(&mut tree.violations);
    let mut allowed = Vec::new();
    for edge in &edges {
        let from = &edge.from[0];
        let rule = match edge.to.first() {
            None => Some("lib.rs is the top: only modules and their re-exported names may be taken from the root".into()),
            Some(to) if to == from => None,
            Some(to) => broken_rule(from, to),
        };
        match rule {
            Some(rule) => violations.push(violation(edge, &rule)),
            None => allowed.push(edge),
        }
    }
    violations.extend(cycles(&allowed));
    violations.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Survey {
        files: tree.files.len(),
        edges,
        violations,
    }
}

fn violation(edge: &Edge, rule: &str) -> Violation {
    Violation {
        file: edge.file.clone(),
        line: edge.line,
        from: display(&edge.from),
        to: display(&edge.to),
        rule: format!("{rule} (names `{}`)", edge.path),
    }
}

fn display(module: &[String]) -> String {
    if module.is_empty() {
        "lib.rs".into()
    } else {
        module.join("::")
    }
}

/// The cycles among the children of every module, the module's own file being one of the nodes.
fn cycles(edges: &[&Edge]) -> Vec<Violation> {
    let mut levels: BTreeSet<&[String]> = BTreeSet::new();
    for module in edges.iter().flat_map(|e| [&e.from, &e.to]) {
        levels.extend((0..module.len()).map(|n| &module[..n]));
    }
    let mut found = Vec::new();
    for level in levels {
        let mut graph: BTreeMap<&str, BTreeMap<&str, &Edge>> = BTreeMap::new();
        for &edge in edges {
            if !(edge.from.starts_with(level) && edge.to.starts_with(level)) {
                continue;
            }
            let node = |module: &'_ Names| module.get(level.len()).cloned();
            if node(&edge.from) != node(&edge.to) {
                let from = edge.from.get(level.len()).map_or("mod", String::as_str);
                let to = edge.to.get(level.len()).map_or("mod", String::as_str);
                graph.entry(from).or_default().entry(to).or_insert(edge);
            }
        }
        let mut reported: BTreeSet<&str> = BTreeSet::new();
        for &start in graph.keys() {
            if reported.contains(start) {
                continue;
            }
            let Some(circle) = shortest_circle(&graph, start) else {
                continue;
            };
            reported.extend(circle.iter().map(|e| e.0));
            let inside = if level.is_empty() {
                String::new()
            } else {
                format!(" in {}", display(level))
            };
            let walk: Vec<&str> = circle.iter().map(|e| e.0).chain([start]).collect();
            let lines: Vec<String> = circle
                .iter()
                .map(|(from, to, e)| {
                    format!(
                        "\n      {from} -> {to} at {}:{} (names `{}`)",
                        e.file.display(),
                        e.line,
                        e.path
                    )
                })
                .collect();
            let first = circle[0].2;
            found.push(Violation {
                file: first.file.clone(),
                line: first.line,
                from: display(&first.from),
                to: display(&first.to),
                rule: format!(
                    "{NO_CYCLES}{inside}: {}{}",
                    walk.join(" -> "),
                    lines.concat()
                ),
            });
        }
    }
    found
}

type Step<'a> = (&'a str, &'a str, &'a Edge);

fn shortest_circle<'a>(
    graph: &BTreeMap<&'a str, BTreeMap<&'a str, &'a Edge>>,
    start: &'a str,
) -> Option<Vec<Step<'a>>> {
    let mut came: BTreeMap<&str, Step<'a>> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for (&next, &edge) in graph.get(node).into_iter().flatten() {
            if came.contains_key(next) {
                continue;
            }
            came.insert(next, (node, next, edge));
            if next == start {
                let mut circle = vec![came[start]];
                while circle[0].0 != start {
                    circle.insert(0, came[circle[0].0]);
                }
                return Some(circle);
            }
            queue.push_back(next);
        }
    }
    None
}

// ------------------------------------------------------------------------- the tree of modules

/// A module, inline or in its own file.
#[derive(Default)]
struct Module {
    /// The module whose file holds it: the node it belongs to.
    owner: Names,
    /// Names defined here, modules excepted.
    items: BTreeSet<String>,
    /// Names imported here, with their paths as written (more than one under different cfgs).
    imports: BTreeMap<String, Vec<Names>>,
    /// Modules or enums imported whole.
    globs: Vec<Names>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A path in an expression, a type, a macro.
    Plain,
    /// `name!`, which may be a `macro_rules!` of another module.
    Macro,
    /// `use` of a name.
    Import { reexport: bool },
    /// `use path::*`.
    Glob { reexport: bool },
}

/// A path as written.
struct Mention {
    module: Names,
    owner: Names,
    file: PathBuf,
    line: usize,
    path: Names,
    kind: Kind,
}

/// Where a path leads.
struct Target {
    module: Names,
    /// The path names something in `module` and not `module` itself.
    is_item: bool,
    /// Modules whose re-exports were followed.
    via: Vec<Names>,
}

/// The first segment of a path with a leading `::`.
const EXTERN: &str = "::";

#[derive(Default)]
struct Tree {
    root: PathBuf,
    modules: BTreeMap<Names, Module>,
    mentions: Vec<Mention>,
    /// `macro_rules!` and the modules that define them.
    macros: BTreeMap<String, Names>,
    /// Names that `extern crate self as ..` gives to this crate.
    self_names: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
    excluded: Vec<PathBuf>,
    violations: Vec<Violation>,
}

/// Where the reader is.
#[derive(Clone)]
struct Place {
    module: Names,
    owner: Names,
    /// Relative to the root.
    file: PathBuf,
    /// Where the files of child modules are.
    dir: PathBuf,
}

impl Tree {
    fn read(root: &Path) -> Self {
        let mut tree = Self {
            root: root.to_owned(),
            ..Self::default()
        };
        tree.read_file(Place {
            module: vec![],
            owner: vec![],
            file: "src/lib.rs".into(),
            dir: "src".into(),
        });
        tree.find_unread(Path::new("src"));
        tree
    }

    fn complain(&mut self, place: &Place, line: usize, to: &str, rule: impl Into<String>) {
        self.violations.push(Violation {
            file: place.file.clone(),
            line,
            from: display(&place.owner),
            to: to.into(),
            rule: rule.into(),
        });
    }

    fn read_file(&mut self, place: Place) {
        self.files.insert(place.file.clone());
        let text = match fs::read_to_string(self.root.join(&place.file)) {
            Ok(text) => text,
            Err(error) => return self.complain(&place, 1, "?", format!("cannot be read: {error}")),
        };
        match syn::parse_file(&text) {
            Ok(file) => self.read_items(&place, &file.items, &text),
            Err(error) => {
                self.complain(
                    &place,
                    error.span().start().line,
                    "?",
                    format!("cannot be parsed: {error}"),
                );
            }
        }
    }

    fn read_items(&mut self, place: &Place, items: &[syn::Item], text: &str) {
        let module = self.modules.entry(place.module.clone()).or_default();
        module.owner.clone_from(&place.owner);
        for item in items {
            if let syn::Item::Mod(item) = item {
                self.read_mod(place, item, text);
                continue;
            }
            self.define(place, item);
            Reader { tree: self, place }.visit_item(item);
        }
    }

    fn define(&mut self, place: &Place, item: &syn::Item) {
        let name = match item {
            syn::Item::Const(i) => &i.ident,
            syn::Item::Enum(i) => &i.ident,
            syn::Item::Fn(i) => &i.sig.ident,
            syn::Item::Static(i) => &i.ident,
            syn::Item::Struct(i) => &i.ident,
            syn::Item::Trait(i) => &i.ident,
            syn::Item::TraitAlias(i) => &i.ident,
            syn::Item::Type(i) => &i.ident,
            syn::Item::Union(i) => &i.ident,
            syn::Item::Macro(syn::ItemMacro {
                ident: Some(ident), ..
            }) => {
                self.macros.insert(plain(ident), place.module.clone());
                ident
            }
            syn::Item::ExternCrate(i) => {
                if i.ident == "self"
                    && let Some((_, rename)) = &i.rename
                {
                    self.self_names.insert(plain(rename));
                }
                return;
            }
            _ => return,
        };
        let module = self.modules.entry(place.module.clone()).or_default();
        module.items.insert(plain(name));
    }

    fn read_mod(&mut self, place: &Place, item: &syn::ItemMod, text: &str) {
        let name = plain(&item.ident);
        let line = item.ident.span().start().line;
        for attribute in &item.attrs {
            Reader { tree: self, place }.visit_attribute(attribute);
            if let syn::Meta::NameValue(pair) = &attribute.meta
                && pair.path.is_ident("path")
            {
                // Complained about; one message for the file is enough.
                let file = pair.value.to_token_stream().to_string();
                self.excluded
                    .push(place.file.with_file_name(file.trim_matches('"')));
                return;
            }
        }
        let mut child = place.clone();
        child.module.push(name.clone());
        child.dir.push(&name);
        let inline = item.content.as_ref();
        if inline.is_none() {
            let candidates = [child.dir.with_extension("rs"), child.dir.join("mod.rs")];
            let Some(file) = candidates.into_iter().find(|f| self.root.join(f).is_file()) else {
                return self.complain(
                    place,
                    line,
                    &display(&child.module),
                    "the module has no file",
                );
            };
            child.file = file;
        }
        if is_test_only(&item.attrs) && has_layering_reason(&self.root, item, text, &child.file) {
            if inline.is_none() {
                self.excluded.extend([child.file, child.dir]);
            }
            return;
        }
        // An inline module belongs to its file; in lib.rs only one that merely re-exports does.
        let facade =
            inline.is_some_and(|(_, items)| items.iter().all(|i| matches!(i, syn::Item::Use(_))));
        let is_top = place.module.is_empty() && !facade;
        if is_top || inline.is_none() {
            child.owner.clone_from(&child.module);
        }
        if is_top && layer_of(&name).is_none() {
            self.complain(
                place,
                line,
                &name,
                "unknown top-level module: add it to LAYERS in tests/layering.rs",
            );
        }
        match inline {
            Some((_, items)) => self.read_items(&child, items, text),
            None => self.read_file(child),
        }
    }

    /// Source files that no `mod` line leads to would escape the rules.
    fn find_unread(&mut self, dir: &Path) {
        let Ok(entries) = fs::read_dir(self.root.join(dir)) else {
            return;
        };
        for entry in entries.flatten() {
            let path = dir.join(entry.file_name());
            if path == Path::new("src/bin")
                || path == Path::new("src/main.rs")
                || self.excluded.contains(&path)
            {
                continue;
            }
            if self.root.join(&path).is_dir() {
                self.find_unread(&path);
            } else if path.extension().is_some_and(|e| e == "rs") && !self.files.contains(&path) {
                self.violations.push(Violation {
                    file: path.clone(),
                    line: 1,
                    from: "?".into(),
                    to: "?".into(),
                    rule: "no `mod` line leads to this file, so nothing checks it".into(),
                });
            }
        }
    }

    // ------------------------------------------------------------------------- resolution

    fn edges(&mut self) -> BTreeSet<Edge> {
        let mut edges = BTreeSet::new();
        let mentions = std::mem::take(&mut self.mentions);
        for mention in &mentions {
            // lib.rs may name everything.
            if mention.owner.is_empty() {
                continue;
            }
            for to in self.mentioned(mention) {
                edges.insert(Edge {
                    from: mention.owner.clone(),
                    to,
                    file: mention.file.clone(),
                    line: mention.line,
                    path: mention.path.join("::"),
                });
            }
        }
        edges
    }

    /// The files, by their modules, that a path refers to.
    fn mentioned(&self, mention: &Mention) -> Vec<Names> {
        let from = &mention.owner;
        let mut target = self.resolve(&mention.module, &mention.path, &mut BTreeSet::new());
        if target.is_none()
            && mention.kind == Kind::Macro
            && let Some(module) = self.macros.get(&mention.path[0])
        {
            target = Some(Target {
                module: module.clone(),
                is_item: true,
                via: vec![],
            });
        }
        let Some(target) = target else { return vec![] };
        let mut named: Vec<Names> = target.via.iter().map(|m| self.owner(m)).collect();
        // Passing through the re-exports of a module above is not naming it.
        named.retain(|module| !from.starts_with(module));
        let last = self.owner(&target.module);
        let (reexport, glob) = match mention.kind {
            Kind::Import { reexport } => (reexport, false),
            Kind::Glob { reexport } => (reexport, true),
            Kind::Plain | Kind::Macro => (false, false),
        };
        // To name a module above without anything in it is no reference either.
        if target.is_item || glob || !from.starts_with(&last) {
            named.push(last);
        }
        let is_below = |module: &Names| module.len() > from.len() && module.starts_with(from);
        named.retain(|module| module != from && !(reexport && is_below(module)));
        named
    }

    fn owner(&self, module: &Names) -> Names {
        self.modules
            .get(module)
            .map_or_else(|| module.clone(), |m| m.owner.clone())
    }

    /// Where `path`, written in `from`, leads; `None` if out of the crate.
    fn resolve(
        &self,
        from: &Names,
        path: &[String],
        seen: &mut BTreeSet<(Names, String)>,
    ) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk(&vec![], rest, seen),
            "self" => self.walk(from, rest, seen),
            "super" => self.walk(&from.split_last()?.1.to_vec(), rest, seen),
            EXTERN => {
                let (name, rest) = rest.split_first()?;
                if self.self_names.contains(name) {
                    self.walk(&vec![], rest, seen)
                } else {
                    None
                }
            }
            name => match self.step(from, name, rest, seen) {
                None if self.self_names.contains(name) => self.walk(&vec![], rest, seen),
                target => target,
            },
        }
    }

    /// Follows `path` from inside `module`.
    fn walk(
        &self,
        module: &Names,
        path: &[String],
        seen: &mut BTreeSet<(Names, String)>,
    ) -> Option<Target> {
        let here = |is_item| Target {
            module: module.clone(),
            is_item,
            via: vec![],
        };
        let Some((name, rest)) = path.split_first() else {
            return Some(here(false));
        };
        match name.as_str() {
            "self" => self.walk(module, rest, seen),
            "super" => self.walk(&module.split_last()?.1.to_vec(), rest, seen),
            name => Some(
                self.step(module, name, rest, seen)
                    .unwrap_or_else(|| here(true)),
            ),
        }
    }

    /// The name in `module` and what follows it, if `module` has such a name.
    fn step(
        &self,
        module: &Names,
        name: &str,
        rest: &[String],
        seen: &mut BTreeSet<(Names, String)>,
    ) -> Option<Target> {
        let here = || {
            Some(Target {
                module: module.clone(),
                is_item: true,
                via: vec![],
            })
        };
        let mut child = module.clone();
        child.push(name.into());
        if self.modules.contains_key(&child) {
            return self.walk(&child, rest, seen);
        }
        let scope = self.modules.get(module)?;
        if scope.items.contains(name) {
            return here();
        }
        if !seen.insert((module.clone(), name.into())) {
            return None;
        }
        let through = |mut target: Target| {
            target.via.push(module.clone());
            Some(target)
        };
        if let Some(paths) = scope.imports.get(name) {
            for path in paths {
                let path: Names = path.iter().chain(rest).cloned().collect();
                if let Some(target) = self.resolve(module, &path, seen) {
                    return through(target);
                }
            }
            return here();
        }
        for glob in &scope.globs {
            let Some(whole) = self.resolve(module, glob, seen) else {
                continue;
            };
            if whole.is_item {
                continue; // The variants of an enum: the glob itself is the reference.
            }
            if let Some(target) = self.step(&whole.module, name, rest, seen) {
                return through(target);
            }
        }
        if module.is_empty()
            && let Some(definer) = self.macros.get(name)
        {
            return Some(Target {
                module: definer.clone(),
                is_item: true,
                via: vec![],
            });
        }
        None
    }
}

fn plain(ident: &proc_macro2::Ident) -> String {
    let name = ident.to_string();
    name.strip_prefix("r#").map(str::to_owned).unwrap_or(name)
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| match &a.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => names_test(list.tokens.clone()),
        _ => false,
    })
}

fn names_test(cfg: TokenStream) -> bool {
    let mut negated = false;
    for token in cfg {
        match token {
            TokenTree::Ident(ident) if ident == "test" => return true,
            TokenTree::Ident(ident) => negated = ident == "not",
            TokenTree::Group(group) if !negated && names_test(group.stream()) => return true,
            _ => negated = false,
        }
    }
    false
}

/// A comment directly above the module or at its head says `layering:` and a reason.
fn has_layering_reason(root: &Path, item: &syn::ItemMod, text: &str, file: &Path) -> bool {
    let says = |line: &str| {
        line.trim_start().starts_with("//")
            && line
                .split_once("layering:")
                .is_some_and(|(_, reason)| !reason.trim().is_empty())
    };
    let is_heading = |line: &&str| {
        let line = line.trim_start();
        line.is_empty() || line.starts_with("//") || line.starts_with("#!")
    };
    let lines: Vec<&str> = text.lines().collect();
    let first = item.span().start().line - 1;
    let name = item.ident.span().start().line - 1;
    let above = lines[..first]
        .iter()
        .rev()
        .take_while(|l| !l.trim().is_empty() && is_heading(l));
    if above.chain(&lines[first..=name]).any(|l| says(l)) {
        return true;
    }
    match &item.content {
        Some((brace, _)) => {
            let inside = &lines[brace.span.open().start().line..];
            inside.iter().take_while(|l| is_heading(l)).any(|l| says(l))
        }
        None => fs::read_to_string(root.join(file))
            .is_ok_and(|text| text.lines().take_while(|l| is_heading(l)).any(says)),
    }
}

// ------------------------------------------------------------------------------ the paths

/// Collects the paths of the items it visits.
struct Reader<'a> {
    tree: &'a mut Tree,
    place: &'a Place,
}

impl Reader<'_> {
    fn mention(&mut self, path: Names, line: usize, kind: Kind) {
        self.tree.mentions.push(Mention {
            module: self.place.module.clone(),
            owner: self.place.owner.clone(),
            file: self.place.file.clone(),
            line,
            path,
            kind,
        });
    }

    fn bind(&mut self, name: String, path: Names) {
        let module = self
            .tree
            .modules
            .entry(self.place.module.clone())
            .or_default();
        module.imports.entry(name).or_default().push(path);
    }

    fn import(&mut self, prefix: &Names, tree: &syn::UseTree, reexport: bool) {
        let line = tree.span().start().line;
        let full = |ident: &proc_macro2::Ident| {
            let mut path = prefix.clone();
            if ident != "self" || path.is_empty() {
                path.push(plain(ident));
            }
            path
        };
        match tree {
            syn::UseTree::Path(tree) => {
                let mut prefix = prefix.clone();
                prefix.push(plain(&tree.ident));
                self.import(&prefix, &tree.tree, reexport);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(prefix, tree, reexport);
                }
            }
            syn::UseTree::Glob(_) => {
                let module = self
                    .tree
                    .modules
                    .entry(self.place.module.clone())
                    .or_default();
                module.globs.push(prefix.clone());
                self.mention(prefix.clone(), line, Kind::Glob { reexport });
            }
            syn::UseTree::Name(name) => {
                let path = full(&name.ident);
                // `use rustls;` names the crate and not itself.
                if path.len() > 1 {
                    self.bind(path[path.len() - 1].clone(), path.clone());
                }
                self.mention(path, line, Kind::Import { reexport });
            }
            syn::UseTree::Rename(name) => {
                let path = full(&name.ident);
                if name.rename != "_" {
                    self.bind(plain(&name.rename), path.clone());
                }
                self.mention(path, line, Kind::Import { reexport });
            }
        }
    }

    /// The paths in tokens that have no syntax yet: macros and attributes.
    fn scan(&mut self, tokens: TokenStream, strings: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => {
                    // `pub(in crate::pool)` is a visibility.
                    let restricts = at > 0
                        && matches!(&tokens[at - 1], TokenTree::Ident(i) if i == "pub")
                        && matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(i)) if i == "in");
                    if !restricts {
                        self.scan(group.stream(), strings);
                    }
                    at += 1;
                }
                TokenTree::Ident(_) => at = self.scan_path(&tokens, at),
                TokenTree::Literal(literal) => {
                    if strings {
                        self.scan_string(&literal.to_string());
                    }
                    at += 1;
                }
                TokenTree::Punct(_) => at += 1,
            }
        }
    }

    /// `serde(with = "crate::wire")` and the like.
    fn scan_string(&mut self, literal: &str) {
        let text = literal.trim_matches('"');
        if ["crate::", "super::", "self::"]
            .iter()
            .any(|p| text.starts_with(p))
            && let Ok(tokens) = text.parse()
        {
            self.scan(tokens, false);
        }
    }

    /// Reads the path that begins at `at`; the result is the index after it.
    fn scan_path(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let punct = |index: usize, ch: char| matches!(tokens.get(index), Some(TokenTree::Punct(p)) if p.as_char() == ch);
        let colons = |index: usize| {
            matches!(tokens.get(index), Some(TokenTree::Punct(p)) if p.as_char() == ':' && p.spacing() == Spacing::Joint)
                && punct(index + 1, ':')
        };
        let line = tokens[at].span().start().line;
        let before = |n: usize| at.checked_sub(n);
        let mut path = vec![tokens[at].to_string()];
        let mut end = at + 1;
        let mut group = None;
        let mut glob = false;
        while colons(end) {
            match tokens.get(end + 2) {
                Some(TokenTree::Ident(ident)) => path.push(plain(ident)),
                Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Brace => {
                    group = Some(g.stream());
                }
                Some(TokenTree::Punct(p)) if p.as_char() == '*' => glob = true,
                _ => break,
            }
            end += 3;
            if group.is_some() || glob {
                break;
            }
        }
        let is_rooted = matches!(path[0].as_str(), "crate" | "super" | "self");
        let is_member =
            before(1).is_some_and(|i| punct(i, '.')) && !before(2).is_some_and(|i| punct(i, '.'));
        let is_substituted = before(1).is_some_and(|i| punct(i, '$')) && path[0] != "crate";
        let is_lifetime = before(1).is_some_and(|i| punct(i, '\''));
        if is_member || is_substituted || is_lifetime {
            return end;
        }
        if before(2).is_some_and(colons) {
            // After `::`: an absolute path, or the tail of something like `<T>::name`.
            let is_absolute = before(3)
                .is_none_or(|i| !punct(i, '>') && !matches!(tokens[i], TokenTree::Ident(_)));
            if is_absolute {
                path.insert(0, EXTERN.into());
                self.mention(path, line, Kind::Plain);
            }
            return end;
        }
        if matches!(path[0].as_str(), "crate" | "super")
            && path.iter().all(|s| s == "crate" || s == "super")
            && matches!(tokens.get(end), Some(TokenTree::Ident(i)) if i == "as")
        {
            let rule =
                "a module above is renamed inside a macro, which hides what is taken from it";
            self.tree.complain(self.place, line, &path.join("::"), rule);
        }
        if let Some(group) = group {
            let tail: TokenStream = group;
            match syn::parse2::<syn::UseTree>(quote::quote!({ #tail })) {
                Ok(tree) => self.import(&path, &tree, false),
                Err(_) => self.scan(tail, false),
            }
            return end;
        }
        if glob {
            let module = self
                .tree
                .modules
                .entry(self.place.module.clone())
                .or_default();
            module.globs.push(path.clone());
            self.mention(path, line, Kind::Glob { reexport: false });
            return end;
        }
        let is_call = matches!(tokens.get(end), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis);
        if path.len() == 1 && punct(end, '!') && !punct(end + 1, '=') {
            self.mention(path, line, Kind::Macro);
        } else if path.len() > 1 || (!is_rooted && (is_call || is_capital(&path[0]))) {
            self.mention(path, line, Kind::Plain);
        }
        end
    }

    fn path_of(path: &syn::Path) -> Names {
        let absolute = path.leading_colon.map(|_| EXTERN.to_owned());
        absolute
            .into_iter()
            .chain(path.segments.iter().map(|s| plain(&s.ident)))
            .collect()
    }
}

fn is_capital(name: &str) -> bool {
    name.starts_with(char::is_uppercase)
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let reexport = match &item.vis {
            syn::Visibility::Inherited => false,
            syn::Visibility::Restricted(vis) => !vis.path.is_ident("self"),
            syn::Visibility::Public(_) => true,
        };
        let prefix = item
            .leading_colon
            .map(|_| EXTERN.to_owned())
            .into_iter()
            .collect();
        self.import(&prefix, &item.tree, reexport);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = Self::path_of(path);
        // A single small name is most likely a variable; calls are seen in visit_expr_call.
        if names.len() > 1 || is_capital(&names[0]) {
            self.mention(names, path.span().start().line, Kind::Plain);
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(function) = &*call.func
            && let Some(name) = function.path.get_ident()
            && !is_capital(&name.to_string())
        {
            self.mention(vec![plain(name)], name.span().start().line, Kind::Plain);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let line = mac.path.span().start().line;
        if mac.path.is_ident("include") {
            self.tree.complain(
                self.place,
                line,
                "?",
                "`include!` hides what the file names; use `mod`",
            );
        }
        match mac.path.get_ident() {
            Some(name) => self.mention(vec![plain(name)], line, Kind::Macro),
            None => self.visit_path(&mac.path),
        }
        self.scan(mac.tokens.clone(), false);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let path = attribute.path();
        if path.is_ident("doc") {
            return;
        }
        let is_conditional_path = path.is_ident("cfg_attr")
            && attribute.meta.require_list().is_ok_and(|list| {
                let tokens: Vec<String> = list
                    .tokens
                    .clone()
                    .into_iter()
                    .map(|t| t.to_string())
                    .collect();
                tokens.windows(2).any(|pair| pair == ["path", "="])
            });
        if path.is_ident("path") || is_conditional_path {
            let line = attribute.span().start().line;
            self.tree.complain(
                self.place,
                line,
                "?",
                "`#[path]` is not allowed: the tree of files is the tree of modules",
            );
            return;
        }
        if path.segments.len() > 1 {
            self.visit_path(path);
        }
        match &attribute.meta {
            syn::Meta::Path(_) => {}
            syn::Meta::List(list) => self.scan(list.tokens.clone(), true),
            syn::Meta::NameValue(pair) => self.scan(pair.value.to_token_stream(), true),
        }
    }

    // `pub(in crate::pool)` is no reference.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

// ------------------------------------------------------------------------------ the crate

#[test]
fn imports_point_down_only() {
    let survey = survey(Path::new(env!("CARGO_MANIFEST_DIR")));
    let report: Vec<String> = survey.violations.iter().map(|v| format!("  {v}")).collect();
    assert!(
        report.is_empty(),
        "{} broken rules (see the layers in tests/layering.rs):\n{}",
        report.len(),
        report.join("\n")
    );
    assert!(
        survey.files >= 20,
        "only {} files were read: is the test blind?",
        survey.files
    );
    assert!(
        survey.edges.len() >= 60,
        "only {} references were seen: is the test blind?",
        survey.edges.len()
    );
    assert!(
        survey.has_edge("client", "pool"),
        "client was not seen to use pool: is the test blind?"
    );
}

// ------------------------------------------------- the check itself, over trees made to break it

/// A crate in a temporary directory.
struct Fake(PathBuf);

impl Fake {
    /// `mod` lines for the top-level modules are added to lib.rs.
    fn new(files: &[(&str, &str)]) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let unique = format!(
            "firstbyte-layering-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let root = std::env::temp_dir().join(unique);
        let mut lib = String::new();
        for (name, text) in files {
            if *name == "lib.rs" {
                lib.push_str(text);
                continue;
            }
            let path = root.join("src").join(name);
            fs::create_dir_all(path.parent().expect("it is below src"))
                .expect("the directory is made");
            fs::write(path, text).expect("the file is written");
            let parts: Vec<&str> = name.split('/').collect();
            if parts.len() == 1 || (parts.len() == 2 && parts[1] == "mod.rs") {
                lib.push_str(&format!("\nmod {};", parts[0].trim_end_matches(".rs")));
            }
        }
        fs::create_dir_all(root.join("src")).expect("the directory is made");
        fs::write(root.join("src/lib.rs"), lib).expect("lib.rs is written");
        Self(root)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn complaints(files: &[(&str, &str)]) -> Vec<String> {
    check(&Fake::new(files).0)
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[track_caller]
fn assert_clean(files: &[(&str, &str)]) {
    assert_eq!(complaints(files), Vec::<String>::new());
}

/// Exactly one complaint, beginning with `start` and holding `part`.
#[track_caller]
fn assert_one(files: &[(&str, &str)], start: &str, part: &str) {
    let found = complaints(files);
    assert!(
        found.len() == 1 && found[0].starts_with(start) && found[0].contains(part),
        "{found:#?}"
    );
}

const POOL: (&str, &str) = (
    "pool.rs",
    "pub struct Pool; pub fn open() {} pub mod inner { pub struct Deep; }",
);
const UP: &str = "timing -> pool: imports point down only";

/// What `timing`, at the bottom, must not say.
#[track_caller]
fn assert_upward(timing: &str, line: usize) {
    assert_one(
        &[POOL, ("timing.rs", timing)],
        &format!("src/timing.rs:{line}: "),
        UP,
    );
}

#[test]
fn downward_imports_are_fine() {
    let files = [
        ("timing.rs", "pub struct Timing;"),
        (
            "error.rs",
            "use crate::timing::Timing; pub struct Error(Timing);",
        ),
        (
            "pool.rs",
            "use crate::{error::Error, timing}; pub struct Pool(Error, timing::Timing);",
        ),
        (
            "client/mod.rs",
            "mod retry; pub(crate) use retry::Retry; use super::pool::Pool; struct C(Pool);",
        ),
        (
            "client/retry.rs",
            "pub(crate) struct Retry(crate::timing::Timing); use std::fmt;",
        ),
    ];
    assert_clean(&files);
    let fake = Fake::new(&files);
    let survey = survey(&fake.0);
    assert_eq!(survey.files, 6);
    assert!(survey.has_edge("client", "pool") && !survey.has_edge("pool", "client"));
}

#[test]
fn upward_use_is_found() {
    assert_upward("use std::fmt;\nuse crate::pool::Pool;", 2);
    assert_upward("pub(crate) use crate::pool::Pool;", 1);
    assert_upward("use crate::pool;", 1);
    assert_upward("use super::pool::Pool as P;", 1);
    assert_upward("use crate::pool::*;", 1);
    assert_upward("fn f() { use crate::pool::Pool; }", 1);
}

#[test]
fn upward_group_is_found() {
    assert_upward("use crate::{\n    timing,\n    pool::{self as p},\n};", 3);
    assert_upward("use {std::fmt, crate::{pool::inner::Deep}};", 1);
}

#[test]
fn upward_path_is_found() {
    assert_upward("fn f() {\n    crate::pool::open();\n}", 2);
    assert_upward(
        "struct T {\n    pool: Vec<Option<super::pool::Pool>>,\n}",
        2,
    );
    assert_upward("impl From<crate::pool::Pool> for T {}", 1);
    assert_upward(
        "fn f(x: u8) { match x { crate::pool::MAX => {} _ => {} } }",
        1,
    );
    assert_upward("#[derive(crate::pool::Make)] struct T;", 1);
    assert_upward("#[serde(with = \"crate::pool\")] struct T;", 1);
}

#[test]
fn upward_path_in_a_macro_is_found() {
    assert_upward(
        "fn f() {\n    assert!(1 == 1, \"{}\",\n        crate::pool::MAX);\n}",
        3,
    );
    assert_upward("fn f() { matches!(x, [super::pool::Pool { .. }]); }", 1);
    assert_upward(
        "thread_local! { static P: u8 = { use crate::{pool::Pool}; 1 }; }",
        1,
    );
    assert_upward("macro_rules! open { () => {\n $crate::pool::open() } }", 2);
    assert_one(
        &[POOL, ("timing.rs", "m! { use crate as up; }")],
        "src/timing.rs:1: timing -> crate",
        "renamed inside a macro",
    );
}

#[test]
fn supers_are_counted() {
    let mod_rs = ("tcp/mod.rs", "mod socket;");
    assert_one(
        &[
            POOL,
            mod_rs,
            ("tcp/socket.rs", "fn f() { super::super::pool::open() }"),
        ],
        "src/tcp/socket.rs:1: tcp::socket -> pool: imports point down only",
        "super::super::pool::open",
    );
    // An inline module has its own `super`.
    assert_upward(
        "mod a { mod b {\n fn f() { super::super::super::pool::open() } } }",
        2,
    );
    assert_clean(&[
        POOL,
        (
            "timing.rs",
            "mod pool { pub fn open() {} } mod b { fn f() { super::pool::open() } }",
        ),
    ]);
}

#[test]
fn renaming_the_root_hides_nothing() {
    assert_upward("use crate as x;\nfn f() { x::pool::open() }", 2);
    assert_upward("use crate::{self as x};\nuse x::pool::Pool;", 2);
    assert_upward(
        "use super as up;\nfn f() { format!(\"{}\", up::pool::MAX); }",
        2,
    );
    assert_upward("fn f() { use super as up;\n up::pool::open() }", 2);
    assert_one(
        &[
            POOL,
            ("lib.rs", "extern crate self as me;"),
            ("timing.rs", "use ::me::pool::Pool;"),
        ],
        "src/timing.rs:1",
        UP,
    );
    let glob = complaints(&[
        POOL,
        ("timing.rs", "use crate::*;\nfn f() { pool::open() }"),
    ]);
    assert!(
        glob.len() == 2 && glob[0].contains("lib.rs is the top") && glob[1].contains(UP),
        "{glob:#?}"
    );
}

#[test]
fn names_taken_from_the_root_lead_to_their_modules() {
    let lib = "pub use pool::Pool; pub use pool::inner::Deep as Low; pub use self::error::*; pub const TOP: u8 = 1;";
    let with = |timing: &'static str| {
        [
            ("lib.rs", lib),
            POOL,
            ("error.rs", "pub struct Error;"),
            ("timing.rs", timing),
        ]
    };
    assert_one(&with("use crate::Pool;"), "src/timing.rs:1", UP);
    assert_one(&with("fn f(_: super::Low) {}"), "src/timing.rs:1", UP);
    assert_one(
        &with("fn f() { vec![crate::Pool]; }"),
        "src/timing.rs:1",
        UP,
    );
    assert_one(
        &with("const T: u8 = crate::TOP;"),
        "src/timing.rs:1",
        "lib.rs is the top",
    );
    assert_clean(&with("use crate::Error; use crate::error;"));
    let facade = "pub mod danger { pub use crate::pool::Pool; }";
    assert_one(
        &[
            ("lib.rs", facade),
            POOL,
            ("timing.rs", "use crate::danger::Pool;"),
        ],
        "src/timing.rs:1",
        UP,
    );
    assert_clean(&[("lib.rs", facade), POOL]);
}

#[test]
fn macros_without_paths_are_followed() {
    let pool = ("pool.rs", "macro_rules! lease { () => {} }");
    assert_one(
        &[pool, ("timing.rs", "fn f() { lease!() }")],
        "src/timing.rs:1",
        UP,
    );
    let exported = ("pool.rs", "#[macro_export] macro_rules! lease { () => {} }");
    assert_one(
        &[exported, ("timing.rs", "fn f() { crate::lease!() }")],
        "src/timing.rs:1",
        UP,
    );
}

#[test]
fn phases_and_protocols_keep_apart() {
    let tls = ("tls.rs", "pub struct Tls;");
    assert_one(
        &[tls, ("tcp.rs", "use crate::tls::Tls;")],
        "src/tcp.rs:1: tcp -> tls",
        "phases know nothing",
    );
    assert_one(
        &[tls, ("http2.rs", "use crate::tls::Tls;")],
        "src/http2.rs:1",
        "know no DNS, TCP, TLS",
    );
    let http1 = ("http1.rs", "pub struct H1;");
    assert_one(
        &[http1, ("sse.rs", "use crate::http1::H1;")],
        "src/sse.rs:1",
        "protocols know nothing",
    );
    assert_clean(&[
        tls,
        http1,
        ("connection.rs", "use crate::{http1::H1, tls::Tls};"),
    ]);
}

#[test]
fn ground_modules_form_no_cycle() {
    assert_one(
        &[
            ("error.rs", "use crate::timing::T;"),
            ("timing.rs", "use crate::event::E;"),
            ("event.rs", "\nfn f() -> crate::error::E {}"),
        ],
        "src/error.rs:1: error -> timing: ",
        "no cycles: error -> timing -> event -> error",
    );
}

fn pool_of(
    mod_rs: &'static str,
    state: &'static str,
    lease: &'static str,
) -> [(&'static str, &'static str); 3] {
    [
        ("pool/mod.rs", mod_rs),
        ("pool/state.rs", state),
        ("pool/lease.rs", lease),
    ]
}

#[test]
fn siblings_form_no_cycle() {
    let found = complaints(&pool_of(
        "mod state; mod lease;",
        "use super::lease::Lease;",
        "use crate::pool::state::State;",
    ));
    assert!(
        found.len() == 1 && found[0].contains("no cycles in pool: lease -> state -> lease"),
        "{found:#?}"
    );
    assert_clean(&pool_of(
        "mod state; mod lease;",
        "",
        "use super::state::State;",
    ));
    let nested = [
        ("pool/mod.rs", "mod state;"),
        ("pool/state/mod.rs", "mod a; mod b;"),
        ("pool/state/a.rs", "use super::b::B;"),
        ("pool/state/b.rs", "use super::a::A;"),
    ];
    assert_one(
        &nested,
        "src/pool/state/a.rs:1",
        "no cycles in pool::state: a -> b -> a",
    );
}

#[test]
fn parent_and_child_form_no_cycle() {
    for mod_rs in [
        "mod state; mod lease; pub struct Key; use state::State;",
        "mod state; mod lease; pub struct Key; fn f() { state::open() }",
        "mod state; mod lease; pub struct Key; fn f() { assert!(state::OPEN) }",
        "mod state; mod lease; pub struct Key; pub use state::State; fn f(_: State) {}",
        "mod state; mod lease; pub struct Key; pub(crate) use state::open; fn f() { open() }",
        "mod state; mod lease; pub struct Key; use state::*;",
    ] {
        assert_one(
            &pool_of(mod_rs, "use super::Key;", ""),
            "src/pool/mod.rs:1: pool -> pool::state",
            "no cycles in pool: mod -> state -> mod",
        );
    }
    assert_clean(&pool_of(
        "mod state; mod lease; pub struct Key; pub use state::State;",
        "use super::Key;",
        "",
    ));
    assert_clean(&pool_of(
        "mod state; mod lease; fn f() { state::open() }",
        "mod tests { use super::*; }",
        "",
    ));
}

#[test]
fn a_reexport_by_the_parent_leads_to_the_sibling() {
    let mod_rs = "mod state; mod lease; pub(crate) use state::{State as S}; pub use lease::Lease;";
    let found = complaints(&pool_of(
        mod_rs,
        "use super::Lease;",
        "fn f(_: super::S) {}",
    ));
    assert!(
        found.len() == 1 && found[0].contains("no cycles in pool: lease -> state -> lease"),
        "{found:#?}"
    );
    assert_clean(&pool_of(
        mod_rs,
        "",
        "use super::S; use crate::pool::State;",
    ));
}

#[test]
fn a_lower_reexport_of_a_higher_name_is_found() {
    let files = [
        POOL,
        ("timing.rs", "pub use crate::pool::Pool;"),
        ("error.rs", "use crate::timing::Pool;"),
    ];
    let found = complaints(&files);
    assert!(
        found.len() == 2
            && found
                .iter()
                .all(|c| c.contains("-> pool: imports point down only")),
        "{found:#?}"
    );
}

#[test]
fn an_unknown_top_level_module_is_found() {
    assert_one(
        &[("util.rs", "")],
        "src/lib.rs:2: lib.rs -> util",
        "add it to LAYERS",
    );
    let inline = ("lib.rs", "mod util { pub fn f() {} }");
    assert_one(
        &[inline],
        "src/lib.rs:1: lib.rs -> util",
        "add it to LAYERS",
    );
}

#[test]
fn ways_around_the_tree_are_found() {
    assert_one(
        &[("timing.rs", "#[path = \"other.rs\"] mod tests;")],
        "src/timing.rs:1",
        "`#[path]` is not allowed",
    );
    assert_one(
        &[("timing.rs", "include!(\"x.rs\");")],
        "src/timing.rs:1",
        "`include!` hides",
    );
    assert_one(
        &[("timing/mod.rs", ""), ("timing/x.rs", "")],
        "src/timing/x.rs:1",
        "no `mod` line",
    );
    assert_one(
        &[("timing.rs", "fn f( {")],
        "src/timing.rs:1",
        "cannot be parsed",
    );
    assert_one(&[("timing.rs", "mod gone;")], "src/timing.rs:1", "no file");
}

#[test]
fn tests_are_held_to_the_rules_unless_they_say_why_not() {
    let used = "use crate::pool::Pool; }";
    assert_upward(&format!("#[cfg(test)] mod tests {{ {used}"), 1);
    assert_upward(
        &format!("#[cfg(test)]\nmod tests {{\n// layering:\n{used}"),
        4,
    );
    assert_upward(&format!("// layering: no test\nmod tests {{ {used}"), 2);
    assert_upward(
        &format!("#[cfg(not(test))]\nmod tests {{\n// layering: why\n{used}"),
        4,
    );
    for timing in [
        format!("#[cfg(test)]\nmod tests {{\n    // layering: drives a whole pool.\n{used}"),
        format!("// layering: drives a whole pool.\n#[cfg(test)]\nmod tests {{ {used}"),
        format!("/// layering: drives a whole pool.\n#[cfg(all(test, unix))]\nmod tests {{ {used}"),
    ] {
        assert_clean(&[POOL, ("timing.rs", &timing)]);
    }
    assert_clean(&[
        POOL,
        ("timing/mod.rs", "#[cfg(test)]\nmod tests;"),
        (
            "timing/tests.rs",
            "//! layering: drives a whole pool.\nuse crate::pool::Pool;",
        ),
    ]);
}

#[test]
fn what_only_looks_like_a_path_is_no_reference() {
    assert_clean(&[
        POOL,
        (
            "timing.rs",
            "//! [`crate::pool::Pool`]\n/// crate::pool\npub(in crate::pool) struct T { pub(super) pool: u8 }",
        ),
        (
            "error.rs",
            "fn f(pool: u8) { g!(self.pool, \"crate::pool\", $pool, pub(in crate::pool) x); super::error::f(pool) }",
        ),
        ("event.rs", "use pool::External; fn f() { pool::g() }"),
    ]);
}
