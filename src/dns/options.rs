//! How names are looked up and how long answers are kept.

use std::time::Duration;

use crate::error::Error;

/// How long a look-up may take and how long answers are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DnsOptions {
    /// How long one look-up may take, whatever the resolver tries meanwhile. Default 2 s: it must
    /// leave room for connecting within the connect timeout of 5 s.
    pub lookup_timeout: Duration,
    /// Shorter times to live are raised to this. Default 5 s: a warm host should not pay a query
    /// per connection. A TTL of 0 is exempt: it serves who asked, and is not kept.
    pub min_ttl: Duration,
    /// Longer times to live are cut to this. Default 300 s: a service that moved is found again.
    pub max_ttl: Duration,
    /// At this share of the time to live a name that was used since it was last asked for is asked for
    /// again in the background, so that a warm host never waits for DNS. Default 80 %. `None`
    /// leaves it to the next look-up.
    pub refresh_at_percent: Option<u8>,
    /// For how long past its time to live an answer is still used at once, while it is asked for
    /// anew in the background (RFC 8767). Default 60 s: addresses seldom change, and a wrong one
    /// costs a failed connect and not an answer.
    pub stale_while_revalidate: Duration,
    /// For how long past its time to live an answer is used when name servers fail or do not answer
    /// (RFC 8767 §5 allows days). Never in place of "no such name" or "no address". Default 1 h.
    pub stale_if_error: Duration,
    /// "No such name" and "no address" are kept at most this long, less if the zone's SOA says so
    /// (RFC 2308 §5). Default 10 s: a record that was just created is found soon.
    pub negative_ttl: Duration,
    /// Failures and timeouts are kept this long (RFC 9520 §3.2 asks for it). Default 1 s. While they
    /// go on, a name is asked for at most that often, then half as often, down to once in 32 times.
    pub failure_ttl: Duration,
    /// Names kept; the least recently used leaves. Default 1024.
    pub max_names: usize,
    /// Addresses kept of one answer. Default 16: more would only feed a race that tries four at a
    /// time.
    pub max_addresses: usize,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            lookup_timeout: Duration::from_secs(2),
            min_ttl: Duration::from_secs(5),
            max_ttl: Duration::from_secs(300),
            refresh_at_percent: Some(80),
            stale_while_revalidate: Duration::from_secs(60),
            stale_if_error: Duration::from_secs(3600),
            negative_ttl: Duration::from_secs(10),
            failure_ttl: Duration::from_secs(1),
            max_names: 1024,
            max_addresses: 16,
        }
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty,)+) => {
        $(
            #[doc = concat!("Sets `", stringify!($name), "`.")]
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $name;
                self
            }
        )+
    };
}

impl DnsOptions {
    setters! {
        lookup_timeout: Duration,
        min_ttl: Duration,
        max_ttl: Duration,
        stale_while_revalidate: Duration,
        stale_if_error: Duration,
        negative_ttl: Duration,
        failure_ttl: Duration,
        max_names: usize,
        max_addresses: usize,
    }

    /// Sets `refresh_at_percent`.
    pub fn refresh_at_percent(mut self, percent: impl Into<Option<u8>>) -> Self {
        self.refresh_at_percent = percent.into();
        self
    }

    /// # Errors
    /// Invalid: options that contradict each other or leave nothing to use.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = if self.lookup_timeout.is_zero() {
            "dns lookup_timeout is 0: no name could be resolved"
        } else if self.max_addresses == 0 {
            "dns max_addresses is 0: no name could be resolved"
        } else if self.min_ttl > self.max_ttl {
            "dns min_ttl is larger than max_ttl"
        } else if self
            .refresh_at_percent
            .is_some_and(|p| !(1..100).contains(&p))
        {
            "dns refresh_at_percent is not between 1 and 99"
        } else {
            return Ok(());
        };
        Err(Error::invalid(wrong))
    }
}
