//! Names to addresses: who is asked ([`Resolve`]), what is remembered, and how both families
//! arrive apart.
//!
//! ```text
//! Dns::lookup(host) -- literal, localhost, override: at once, nobody is asked
//!                   -- cache: at once
//!                   -- flight: one query per name and family, in a task of its own, shared by all
//! ```
//!
//! `resolve` holds the trait and its types, `cache` decides what is kept and for how long (pure), by
//! the rules of `options`,
//! `lookup` acts, `keeper` knows when to ask anew (pure), `hickory` and `system` are the two resolvers.

mod cache;
#[cfg(feature = "hickory")]
mod hickory;
mod keeper;
mod lookup;
mod options;
mod resolve;
mod special;
mod system;

pub(crate) use cache::Outcome;
#[cfg(any(test, fuzzing))]
pub(crate) use cache::check_operations;
#[cfg(feature = "hickory")]
pub use hickory::HickoryResolver;
pub(crate) use lookup::{Dns, Families, Lookup, NameUse};
pub use options::DnsOptions;
pub use resolve::{Answer, Family, Resolve, ResolveError, ResolveErrorKind};
pub use special::is_public;
pub use system::SystemResolver;
