//! What all clones of a client share.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, Method};

use crate::body::Body;
use crate::error::Error;
use crate::metrics::Counters;
use crate::pool::Pool;

use super::base_url::BaseUrl;
use super::options::{CallOptions, RequestOptions};
use super::prepare::{Prepared, mark_all_sensitive};
use super::response::{Response, ResponseUrl};
use super::send::{Route, send};

pub(crate) struct ClientCore {
    pub(crate) pool: Arc<Pool>,
    pub(crate) base: BaseUrl,
    pub(crate) route: Route,
    pub(crate) options: CallOptions,
    pub(crate) counters: Arc<Counters>,
    /// Replaced when the client is built again under its name: keys rotate.
    pub(crate) headers: ArcSwap<HeaderMap>,
}

impl ClientCore {
    /// Sends a request to a path under the base URL.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(String, String)],
        mut headers: HeaderMap,
        body: Body,
        options: &RequestOptions,
    ) -> Result<Response, Error> {
        let named = |e: Error| e.with_origin(self.route.origin_text.clone());
        let target = self.base.target(path, query).map_err(named)?;
        let url = ResponseUrl::new(self.route.origin_text.clone(), target.clone());
        mark_all_sensitive(&mut headers);
        let request = Prepared::new(
            method,
            target,
            headers,
            Some(&self.headers.load()),
            &self.route.origin,
            body.exact_len(),
            options,
        )
        .map_err(named)?;
        let options = self.options.clone().with(options);
        let max_body_bytes = options.max_body_bytes;
        let counters = Some(&*self.counters);
        let response = send(&self.pool, counters, &self.route, request, body, options).await?;
        Ok(Response::new(response, url, max_body_bytes))
    }
}
