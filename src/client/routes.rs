//! Where the requests of a pool's own `send` go: the origins that are asked for again and again, parsed once.

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::Uri;
use http::uri::Scheme;

use crate::error::Error;

use super::send::Route;

/// A few remote APIs, as most callers have; one more costs what a route costs.
const SLOTS: usize = 16;

/// The routes of a few origins. Which of two that share a slot is kept matters for speed, and for what a route has
/// learned (how long its origin wants HTTP/1.1), which is learned anew then.
#[derive(Default)]
pub(crate) struct Routes {
    slots: [ArcSwapOption<Kept>; SLOTS],
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

struct Kept {
    scheme: Scheme,
    /// Bytes of its own: the URL it came from may hold a key.
    authority: Box<str>,
    route: Arc<Route>,
}

impl Routes {
    /// The route of an absolute URL; `make` is pure.
    pub(crate) fn get(
        &self,
        uri: &Uri,
        make: impl FnOnce() -> Result<Route, Error>,
    ) -> Result<Arc<Route>, Error> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return make().map(Arc::new);
        };
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(authority.as_str());
        let slot = &self.slots[hash as usize % SLOTS];
        if let Some(kept) = &*slot.load()
            // As they stand there: the same origin written otherwise has a route of its own.
            && *kept.authority == *authority.as_str()
            && kept.scheme == *scheme
        {
            return Ok(kept.route.clone());
        }
        let route = Arc::new(make()?);
        slot.store(Some(Arc::new(Kept {
            scheme: scheme.clone(),
            authority: authority.as_str().into(),
            route: route.clone(),
        })));
        Ok(route)
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and its siblings.
    use super::*;
    use crate::connection::ConnectOptions;
    use crate::origin::Origin;

    #[test]
    fn origin_that_comes_again_has_the_same_route_and_others_have_theirs() {
        let routes = Routes::default();
        let get = |url: &str| {
            let uri: Uri = url.parse().unwrap();
            let make = || Route::new(Origin::from_uri(&uri)?, Arc::<ConnectOptions>::default());
            routes.get(&uri, make)
        };
        let one = get("https://one.test/a").unwrap();
        assert!(Arc::ptr_eq(&one, &get("https://one.test/b?c").unwrap()));
        for other in [
            "http://one.test",
            "https://one.test:444",
            "https://two.test",
        ] {
            let route = get(other).unwrap();
            assert!(!Arc::ptr_eq(&one, &route));
            assert!(other.ends_with(&route.origin.authority()), "{other}");
        }
        for n in 0..100 {
            let url = format!("https://host{n}.test");
            assert_eq!(*get(&url).unwrap().origin_text, *url);
        }
        assert!(get("https://h:65536/").is_err() && get("/path").is_err());
    }
}
