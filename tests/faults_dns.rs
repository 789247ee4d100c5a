//! How name servers and answers misbehave, and the right answer to each.
//!
//! | fault | test |
//! |---|---|
//! | no such name, no address, failure, refusal | here; `dns::failure_is_remembered_shortly...`; the times in `dns::cache` |
//! | one family without addresses, slow or silent | here; `dns::slow_family_does_not_hold_the_other_up` |
//! | silent or dead name servers | `dns::second_name_server...`; `dns::lookup` on a paused clock (deadline, stale answers) |
//! | truncated answers | `dns::truncated_answer_is_asked_for_by_tcp_and_never_kept` |
//! | aliases that loop, unrelated records, foreign answers, nonsense | here |
//! | TTL of 0, huge, top bit set | here; `dns::cache` |
//! | a thousand addresses, duplicates, addresses that must not be reached | here; `dns::address_filter...` |
//! | black, refusing, unroutable or stalling addresses | here; `dns::ipv6_is_tried_first...`; `race` |
//! | the address set changes | here for new connections |
//! | ten thousand callers, callers that go away, two runtimes | `dns::lookup`; `lifecycle` |
//! | resolv.conf and hosts file missing, garbage, changing | here; `dns::hosts_file...`, `dns::search_domains...` |
//! | literals, localhost, IDNA, final dots, numeric forms | `dns::literals...`; the unit tests of `origin` |
//!
//! HTTPS and SVCB records (RFC 9460) are never asked for, so that none can mislead. Moving live connections off
//! addresses that left the answers is the pool's matter and not yet done.

mod common;
mod support;

use std::net::IpAddr;
use std::time::Duration;

use common::{World, eventually, in_time};
use firstbyte::dns::{self, HickoryResolver, Resolve, ResolveErrorKind};
use firstbyte::timing::AttemptOutcome;
use firstbyte::{ConnectionPool, Phase, Protocols};
use support::dns::{Family, Reply};
use support::raw_dns::{Question, RawDns, name, record};

const A: u16 = 1;
const CNAME: u16 = 5;

async fn ask(server: &RawDns, host: &str) -> Result<Vec<IpAddr>, ResolveErrorKind> {
    let resolver = HickoryResolver::name_servers([server.addr()]);
    let answer = resolver.resolve(host, dns::Family::V4).await;
    answer.map(|a| a.addrs).map_err(|e| e.kind())
}

fn address(owner: &[u8], last: u8) -> Vec<u8> {
    record(owner, A, 60, &[127, 0, 0, last])
}

/// A pointer to the name of the question.
const ASKED: [u8; 2] = [0xc0, 12];

#[tokio::test]
async fn server_failure_and_refusal_are_typed_and_cost_one_question_a_second() {
    in_time(async {
        for reply in [Reply::ServFail, Reply::Refused] {
            let world = World::new().await;
            world.dns.reply("sick.test", Family::V4, reply.clone());
            world.dns.reply("sick.test", Family::V6, reply.clone());
            let client = world.client_of("https://sick.test/", Protocols::Auto);
            let error = client.get("/").send().await.unwrap_err();
            assert!(
                error.is_dns() && error.phase() == Some(Phase::Dns),
                "{error}"
            );
            let asked = world.dns.total_queries();
            for _ in 0..5 {
                client.get("/").send().await.unwrap_err();
            }
            assert_eq!(world.dns.total_queries(), asked, "{reply:?} is remembered");
        }
    })
    .await;
}

#[tokio::test]
async fn slow_ipv4_does_not_hold_ipv6_up() {
    in_time(async {
        let server = support::server::Server::builder()
            .plain()
            .bind("[::1]:0".parse().unwrap())
            .start()
            .await;
        let world = World::new().await;
        world.dns.v6("six.test", &["::1"]);
        let gate = world.dns.hold("six.test", Family::V4);
        let url = format!("http://six.test:{}/", server.port());
        let response = world.client_of(&url, Protocols::Auto).get("/").send().await;
        assert_eq!(response.unwrap().status(), 200);
        drop(gate);
    })
    .await;
}

#[tokio::test]
async fn alias_that_leads_to_itself_or_on_for_ever_ends_in_an_error() {
    in_time(async {
        let to_itself = |question: &Question<'_>| {
            let own = question.section();
            let owner = own[..own.len() - 4].to_vec();
            vec![question.reply(&[record(&ASKED, CNAME, 60, &owner)])]
        };
        let server = RawDns::start(to_itself).await;
        assert!(ask(&server, "loop.test").await.is_err());
        assert!(server.asked() < 40, "{} questions", server.asked());

        let longer = |question: &Question<'_>| {
            let own = question.section();
            let mut target = vec![1, b'x'];
            target.extend(&own[..own.len() - 4]);
            if target.len() > 250 {
                return Vec::new();
            }
            vec![question.reply(&[record(&ASKED, CNAME, 60, &target)])]
        };
        let server = RawDns::start(longer).await;
        assert!(ask(&server, "chain.test").await.is_err());
        assert!(server.asked() < 100, "{} questions", server.asked());
    })
    .await;
}

#[tokio::test]
async fn alias_is_followed_and_records_of_other_names_are_not_taken() {
    in_time(async {
        let server = RawDns::start(|question| {
            let target = name("real.test");
            vec![question.reply(&[
                address(&name("victim.test"), 66),
                record(&ASKED, CNAME, 60, &target),
                address(&target, 5),
                address(&name("other.test"), 67),
            ])]
        })
        .await;
        assert_eq!(
            ask(&server, "alias.test").await.unwrap(),
            [IpAddr::from([127, 0, 0, 5])]
        );
        let only_others =
            |question: &Question<'_>| vec![question.reply(&[address(&name("victim.test"), 66)])];
        let server = RawDns::start(only_others).await;
        assert!(ask(&server, "asked.test").await.is_err());
    })
    .await;
}

#[tokio::test]
async fn answer_to_another_question_is_ignored_and_the_true_one_awaited() {
    in_time(async {
        let server = RawDns::start(|question| {
            let forged = question.reply(&[address(&ASKED, 66)]);
            let mut wrong_id = forged.clone();
            wrong_id[..2].copy_from_slice(&(question.id() ^ 0x5555).to_be_bytes());
            let mut wrong_question = forged;
            wrong_question[13] ^= 1;
            vec![
                wrong_id,
                wrong_question,
                question.reply(&[address(&ASKED, 5)]),
            ]
        })
        .await;
        assert_eq!(
            ask(&server, "spoofed.test").await.unwrap(),
            [IpAddr::from([127, 0, 0, 5])]
        );
    })
    .await;
}

#[tokio::test]
async fn nonsense_is_an_error_within_the_look_ups_deadline() {
    in_time(async {
        type Make = fn(&Question<'_>) -> Vec<u8>;
        let cases: [(&str, Make); 6] = [
            ("nothing", |_| Vec::new()),
            ("noise", |q| [&q.bytes[..2], &[0xff; 300]].concat()),
            ("pointer to itself", |q| {
                q.reply(&[address(&[0xc0, q.section().len() as u8 + 12], 1)])
            }),
            ("length that lies", |q| {
                let mut reply = q.reply(&[address(&ASKED, 1)]);
                let at = reply.len() - 5;
                reply[at] = 200;
                reply
            }),
            ("long label", |q| {
                q.reply(&[address(&[&[0x7f][..], &[b'x'; 127], &[0]].concat(), 1)])
            }),
            ("header alone", |q| q.bytes[..12].to_vec()),
        ];
        for (what, make) in cases {
            let server = RawDns::start(move |question| vec![make(question)]).await;
            let pool = ConnectionPool::builder()
                .name_servers([server.addr()])
                .dns(dns::DnsOptions::default().lookup_timeout(Duration::from_millis(300)))
                .build()
                .unwrap();
            let client = pool.client_builder("https://a.test/").build().unwrap();
            let error = client.get("/").send().await.unwrap_err();
            assert!(error.is_dns(), "{what}: {error}");
            assert_eq!(pool.stats().open, 0, "{what}");
        }
    })
    .await;
}

#[tokio::test]
async fn answer_with_a_ttl_of_zero_serves_once() {
    in_time(async {
        let world = World::new().await;
        let ips = ["127.0.0.1".parse().unwrap()];
        world.dns.records("api.test", Family::V4, &ips, 0);
        for n in 1..=3 {
            let client = world.client(Protocols::Auto);
            client.get("/").send().await.unwrap();
            assert_eq!(world.dns.queries("api.test", Family::V4), n);
            world.pool.close_idle();
            eventually("it is closed", || world.pool.stats().open == 0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn thousand_addresses_are_cut_to_sixteen() {
    in_time(async {
        let world = World::new().await;
        let mut ips: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap()];
        ips.extend((0..1000u16).map(|n| {
            let [high, low] = n.to_be_bytes();
            IpAddr::from([10, 0, high, low])
        }));
        world.dns.records("api.test", Family::V4, &ips, 60);
        let response = world.client(Protocols::Auto).get("/").send().await.unwrap();
        let facts = response.connection().trace().dns_facts.clone().unwrap();
        assert_eq!(facts.answers.len(), 16);
        assert!(world.dns.tcp_queries() >= 1, "it does not fit a datagram");
    })
    .await;
}

#[tokio::test]
async fn unroutable_address_moves_on_at_once() {
    in_time(async {
        let world = World::new().await;
        // No machine has a way to these: a multicast address, and the far end of a bound source.
        world.dns.v6("api.test", &["ff0e::1"]);
        let response = world.client(Protocols::Auto).get("/").send().await.unwrap();
        let attempts = &response.connection().trace().attempts;
        assert_eq!(attempts.len(), 2);
        assert!(matches!(
            attempts[0].outcome,
            Some(AttemptOutcome::Failed(_))
        ));
        let (failed, began) = (attempts[0].end.unwrap(), attempts[1].start);
        assert!(failed <= began, "by failure and not by timer");
        assert_eq!(attempts[1].outcome, Some(AttemptOutcome::Won));
    })
    .await;
}

#[tokio::test]
async fn new_connections_go_where_the_name_leads_now() {
    in_time(async {
        let options = dns::DnsOptions::default()
            .min_ttl(Duration::from_millis(1))
            .max_ttl(Duration::from_millis(1))
            .refresh_at_percent(None)
            .stale_while_revalidate(Duration::ZERO);
        let world = World::with(|server| server, |pool| pool.dns(options)).await;
        let other = support::server::Server::builder()
            .identity(&world.pki.server(&["api.test"]), "api.test")
            .bind(
                format!("127.0.0.2:{}", world.server.port())
                    .parse()
                    .unwrap(),
            )
            .start()
            .await;
        let client = world.client(Protocols::Auto);
        client.get("/").send().await.unwrap();
        world.dns.v4("api.test", &["127.0.0.2"]);
        world.pool.close_idle();
        eventually("it is closed", || world.pool.stats().open == 0).await;
        client.get("/").send().await.unwrap();
        assert_eq!(other.counts().requests, 1);
        assert_eq!(world.server.counts().requests, 1);
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn missing_or_empty_resolv_conf_means_the_local_name_server() {
    in_time(async {
        let empty = std::env::temp_dir().join(format!("firstbyte-{}-empty", std::process::id()));
        std::fs::write(&empty, "nonsense\n").unwrap();
        for path in [empty.clone(), "/nonexistent/resolv.conf".into()] {
            let resolver = HickoryResolver::system().resolv_conf(&path);
            let pool = ConnectionPool::builder()
                .resolver(resolver)
                .build()
                .unwrap();
            let client = pool.client_builder("https://a.test/").build().unwrap();
            // Whether one listens there or not, the answer is an answer or an error of DNS.
            let error = client.get("/").send().await.unwrap_err();
            assert!(error.is_dns(), "{error}");
        }
        std::fs::remove_file(&empty).unwrap();
    })
    .await;
}
