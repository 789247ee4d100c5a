//! Who may share a connection: the whole key, compared, never a hash of it alone.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, OnceLock};

use tokio::runtime::Id as RuntimeId;

use crate::connection::ConnectOptions;
use crate::origin::Origin;

/// Everything that shapes a connection, and the runtime its socket belongs to. Its hash is
/// computed once; equality compares every part.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    parts: Arc<Parts>,
    hash: u64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Parts {
    origin: Origin,
    options: Arc<ConnectOptions>,
    runtime: RuntimeId,
}

impl Key {
    pub(crate) fn new(origin: Origin, options: Arc<ConnectOptions>, runtime: RuntimeId) -> Self {
        static HASHER: OnceLock<RandomState> = OnceLock::new();
        // Every option shapes the connection. A new one does not compile until it is named here,
        // or kept out of `ConnectOptions` because it does not.
        let ConnectOptions {
            protocols: _,
            tls: _,
            tcp: _,
            ip_version: _,
            proxies: _,
            unix_socket: _,
            isolation: _,
            tunnels: _,
        } = &*options;
        let parts = Parts {
            origin,
            options,
            runtime,
        };
        let hash = HASHER.get_or_init(RandomState::new).hash_one(&parts);
        Self {
            parts: Arc::new(parts),
            hash,
        }
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.parts.origin
    }

    pub(crate) fn options(&self) -> &ConnectOptions {
        &self.parts.options
    }

    pub(crate) fn runtime(&self) -> RuntimeId {
        self.parts.runtime
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.parts, &other.parts)
            || (self.hash == other.hash && self.parts == other.parts)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}
