//! What all clones of a client share.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::uri::PathAndQuery;

use crate::error::Error;
use crate::metrics::Counters;
use crate::pool::Pool;

use super::base_url::BaseUrl;
use super::options::CallOptions;
use super::prepare::DefaultHeaders;
use super::send::Route;
use super::targets::Targets;

pub(crate) struct ClientCore {
    pub(crate) pool: Arc<Pool>,
    pub(crate) base: BaseUrl,
    pub(crate) targets: Targets,
    pub(crate) route: Route,
    pub(crate) options: CallOptions,
    pub(crate) counters: Arc<Counters>,
    /// Replaced when the client is built again under its name: keys rotate.
    pub(crate) headers: ArcSwap<DefaultHeaders>,
}

impl ClientCore {
    /// The target of a request to a path under the base URL.
    pub(crate) fn target(&self, path: &str) -> Result<PathAndQuery, Error> {
        self.targets.get(path, |path| self.base.target(path))
    }
}
