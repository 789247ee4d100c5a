//! Key shares made before they are needed.
//!
//! What a ClientHello offers of a key exchange can be made at any time before, and takes longer to make than the
//! rest of that message: some 50 to 110 microseconds for X25519MLKEM768. So one share is kept for each group in use,
//! and made anew between dials ([`make_key_shares`](super::make_key_shares)). It serves one handshake and goes with it:
//! by a share shown twice, two connections could be told to be of one client.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_rustls::rustls;

use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{NamedGroup, ProtocolVersion};

use crate::sync::lock;

/// A group of a provider, with one share of it made ahead.
pub(super) struct Ahead {
    group: &'static dyn SupportedKxGroup,
    made: Mutex<Option<Box<dyn ActiveKeyExchange>>>,
    /// It is in use: the next share is worth its making.
    is_used: AtomicBool,
    /// Set when one is taken.
    is_short: &'static AtomicBool,
}

impl Ahead {
    fn new(group: &'static dyn SupportedKxGroup, is_short: &'static AtomicBool) -> Self {
        Self {
            group,
            made: Mutex::new(None),
            is_used: AtomicBool::new(false),
            is_short,
        }
    }

    fn make(&self) {
        if !self.is_used.load(Ordering::Relaxed) || lock(&self.made).is_some() {
            return;
        }
        // Not under the lock: a handshake that wants one meanwhile makes its own. What fails here fails again
        // where somebody can be told.
        if let Ok(share) = self.group.start() {
            *lock(&self.made) = Some(share);
        }
    }
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As what it stands for: a configuration prints its groups.
        self.group.fmt(f)
    }
}

impl SupportedKxGroup for Ahead {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        let made = lock(&self.made).take();
        self.is_used.store(true, Ordering::Relaxed);
        self.is_short.store(true, Ordering::Release);
        match made {
            Some(share) => Ok(share),
            None => self.group.start(),
        }
    }

    fn start_and_complete(&self, peer: &[u8]) -> Result<CompletedKeyExchange, rustls::Error> {
        self.group.start_and_complete(peer)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        self.group.ffdhe_group()
    }

    fn name(&self) -> NamedGroup {
        self.group.name()
    }

    fn fips(&self) -> bool {
        self.group.fips()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        self.group.usable_for_version(version)
    }
}

/// A provider's groups, each with a share made ahead.
pub(super) struct Groups(Vec<&'static Ahead>);

impl Groups {
    /// Puts them before the provider's own. For providers that live as long as the process: what is made here does.
    /// `is_short` is set whenever a share was taken.
    pub(super) fn of(provider: &mut CryptoProvider, is_short: &'static AtomicBool) -> Self {
        let ahead = |group: &&'static dyn SupportedKxGroup| {
            let ahead: &'static Ahead = Box::leak(Box::new(Ahead::new(*group, is_short)));
            ahead
        };
        let groups: Vec<_> = provider.kx_groups.iter().map(ahead).collect();
        // What a first handshake offers.
        if let Some(first) = groups.first() {
            first.is_used.store(true, Ordering::Relaxed);
        }
        provider.kx_groups = groups.iter().map(|group| *group as _).collect();
        Self(groups)
    }

    /// Makes what is missing.
    pub(super) fn make(&self) {
        self.0.iter().for_each(|group| group.make());
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and its siblings.
    use super::super::config::unprepared;
    use super::*;
    use std::sync::atomic::AtomicU8;

    /// Its shares are numbered.
    #[derive(Debug, Default)]
    struct Counting(AtomicU8);

    struct Share(Vec<u8>);

    impl SupportedKxGroup for Counting {
        fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                9 => Err(rustls::Error::FailedToGetRandomBytes),
                n => Ok(Box::new(Share(vec![n]))),
            }
        }

        fn name(&self) -> NamedGroup {
            NamedGroup::Unknown(7)
        }
    }

    impl ActiveKeyExchange for Share {
        fn complete(
            self: Box<Self>,
            _: &[u8],
        ) -> Result<rustls::crypto::SharedSecret, rustls::Error> {
            Err(rustls::Error::General("it agrees on nothing".into()))
        }

        fn pub_key(&self) -> &[u8] {
            &self.0
        }

        fn group(&self) -> NamedGroup {
            NamedGroup::Unknown(7)
        }
    }

    struct Fixture {
        first: &'static Counting,
        second: &'static Counting,
        is_short: &'static AtomicBool,
        provider: CryptoProvider,
        groups: Groups,
    }

    fn fixture() -> Fixture {
        let (first, second) = (Box::leak(Box::default()), Box::leak(Box::default()));
        let mut provider = unprepared(Default::default());
        provider.kx_groups = vec![first as _, second as _];
        let is_short = Box::leak(Box::default());
        let groups = Groups::of(&mut provider, is_short);
        Fixture {
            first,
            second,
            is_short,
            provider,
            groups,
        }
    }

    fn started(counting: &Counting) -> u8 {
        counting.0.load(Ordering::Relaxed)
    }

    #[test]
    fn each_share_is_made_once_and_serves_once() {
        let Fixture {
            first,
            second,
            is_short,
            provider,
            groups,
        } = fixture();
        let share = |n: usize| provider.kx_groups[n].start().unwrap().pub_key()[0];
        groups.make();
        groups.make();
        assert_eq!(
            started(first),
            1,
            "one is kept, however often it is asked for"
        );
        assert_eq!(started(second), 0, "nobody uses it");
        assert_eq!(
            [share(0), share(0), share(0)],
            [0, 1, 2],
            "none is shown twice"
        );

        assert_eq!(share(1), 0);
        assert!(is_short.load(Ordering::Relaxed));
        groups.make();
        assert_eq!(
            (started(first), started(second)),
            (4, 2),
            "both are in use now"
        );
        assert_eq!([share(1), share(0), share(1), share(0)], [1, 3, 2, 4]);
    }

    #[test]
    fn share_that_cannot_be_made_fails_where_it_is_wanted() {
        let Fixture {
            first,
            provider,
            groups,
            ..
        } = fixture();
        first.0.store(9, Ordering::Relaxed);
        groups.make();
        assert_eq!(started(first), 10);
        first.0.store(9, Ordering::Relaxed);
        assert!(provider.kx_groups[0].start().is_err());
    }
}
