//! The timing contract as a property: whatever happens, in whatever order, the phases add up.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::timing::{Phase, WaitCause};

fn sum(timing: &RequestTiming) -> Duration {
    Phase::ALL
        .iter()
        .filter_map(|phase| timing.get(*phase))
        .sum()
}

fn check(timing: &RequestTiming) {
    assert_eq!(sum(timing), timing.total(), "{timing:?}");
    let order: Vec<_> = [
        Some(timing.start()),
        timing.attempt_start(),
        timing.acquired(),
        timing.send_end(),
        timing.first_byte(),
        timing.headers(),
        Some(timing.end()),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(order.is_sorted(), "{timing:?}");
    if let Some(paused) = timing.receive_paused() {
        assert!(paused <= timing.receive().unwrap());
    }
    let queue = [
        timing.queue_limit(),
        timing.queue_dial(),
        timing.queue_local(),
    ];
    let parts: Duration = queue.into_iter().flatten().sum();
    assert_eq!(timing.queue().unwrap_or_default(), parts);
}

async fn pass(micros: u16) {
    tokio::time::advance(Duration::from_micros(micros.into())).await;
}

/// What a random request lives through.
#[derive(Clone, Debug)]
struct Life {
    gaps: Vec<u16>,
    attempts: u8,
    /// Per attempt: waits for a limit, waits for a dial, is served by it, joins it late.
    limit: bool,
    dial: bool,
    served: bool,
    joins_after: u8,
    skip_tls: bool,
    proxy: bool,
    early_rejected: bool,
    /// The race goes on through TLS.
    raced: bool,
    reads: u8,
    first_byte_before_upload_end: bool,
    informational: bool,
    /// After how many steps it is cut off.
    cut: u8,
}

fn life() -> impl Strategy<Value = Life> {
    (
        prop::collection::vec(0u16..500, 8..32),
        1u8..4,
        any::<[bool; 8]>(),
        0u8..6,
        0u8..5,
        any::<bool>(),
        0u8..60,
    )
        .prop_map(
            |(gaps, attempts, flags, joins_after, reads, informational, cut)| Life {
                gaps,
                attempts,
                limit: flags[0],
                dial: flags[1],
                served: flags[2],
                skip_tls: flags[3],
                first_byte_before_upload_end: flags[4],
                proxy: flags[5],
                early_rejected: flags[6],
                raced: flags[7],
                joins_after,
                reads,
                informational,
                cut,
            },
        )
}

/// The phase that runs once this was said.
fn phase_after(event: &DialEvent, raced: bool) -> Option<Phase> {
    match event {
        DialEvent::LookupStart => Some(Phase::Dns),
        DialEvent::ConnectStart(_) => Some(Phase::Tcp),
        DialEvent::ProxyStart => Some(Phase::Proxy),
        DialEvent::TlsStart | DialEvent::Established { .. } => Some(Phase::Tls),
        DialEvent::ConnectEnd(..) if raced => Some(Phase::Tls),
        DialEvent::ProtocolStart => Some(Phase::Protocol),
        _ => None,
    }
}

/// Lives it; every step may be the last.
async fn live(life: &Life) -> RequestTiming {
    let mut recorder = RequestRecorder::start(None);
    let mut gaps = life.gaps.iter().copied().cycle();
    let mut left = life.cut;
    // One step: time passes, and the request may be cut off here.
    macro_rules! step {
        () => {
            pass(gaps.next().expect("endless")).await;
            check(&recorder.timing());
            if left == 0 {
                recorder.emit(RequestEvent::End);
                return recorder.timing();
            }
            left -= 1;
        };
    }
    for attempt in 0..life.attempts {
        recorder.emit(RequestEvent::AttemptStart);
        step!();
        if life.limit {
            let enter = now();
            recorder.waiting(WaitCause::Limit, enter, None);
            step!();
            recorder.emit(RequestEvent::Waited(Waited {
                why: WaitCause::Limit,
                enter,
                leave: now(),
            }));
        }
        let mut trace = None;
        let mut expected = Vec::new();
        if life.dial {
            let dial = DialRecorder::new();
            let addr = "127.0.0.1:1".parse().unwrap();
            let facts = TlsFacts {
                resumed: false,
                hello_retry: false,
                version: "",
                cipher_suite: "",
                group: None,
                alpn: None,
                early_data: crate::timing::EarlyData::NotOffered,
            };
            let mut events = vec![DialEvent::LookupStart, DialEvent::ConnectStart(addr)];
            let won = DialEvent::ConnectEnd(addr, AttemptOutcome::Won);
            if life.raced {
                events.extend([
                    DialEvent::Established {
                        addr,
                        fast_open: false,
                    },
                    won,
                    DialEvent::TlsEnd(facts),
                ]);
            } else {
                events.push(won);
                if life.proxy {
                    events.extend([DialEvent::ProxyStart, DialEvent::ProxyEnd]);
                }
                if !life.skip_tls {
                    events.extend([DialEvent::TlsStart, DialEvent::TlsEnd(facts)]);
                }
            }
            events.extend([DialEvent::ProtocolStart, DialEvent::Ready]);
            let mut enter = None;
            for (n, event) in events.into_iter().enumerate() {
                if n == usize::from(life.joins_after) {
                    enter = Some(now());
                    recorder.waiting(WaitCause::Dial, now(), Some(dial.clone()));
                }
                let open = phase_after(&event, life.raced);
                dial.emit(event);
                let before = now();
                step!();
                if let Some(phase) = open {
                    expected.push((phase, now() - before));
                }
            }
            let enter = enter.unwrap_or_else(now);
            if life.served {
                trace = Some(Arc::new(dial.trace()));
            } else {
                let leave = now();
                recorder.emit(RequestEvent::Waited(Waited {
                    why: WaitCause::Dial,
                    enter,
                    leave,
                }));
            }
        }
        step!();
        let how = if trace.is_some() {
            ConnectionUse::Joined
        } else {
            ConnectionUse::Idle
        };
        let dial = trace.clone();
        recorder.emit(RequestEvent::Acquired { how, dial });
        let timing = recorder.timing();
        for phase in [
            Phase::Dns,
            Phase::Tcp,
            Phase::Proxy,
            Phase::Tls,
            Phase::Protocol,
        ] {
            let of_phase = expected.iter().filter(|(p, _)| *p == phase);
            let waited: Duration = of_phase.map(|(_, time)| *time).sum();
            let waited = if trace.is_some() {
                waited
            } else {
                Duration::ZERO
            };
            assert_eq!(timing.get(phase).unwrap_or_default(), waited, "{phase}");
        }
        step!();
        if life.informational {
            recorder.emit(RequestEvent::Informational {
                status: http::StatusCode::EARLY_HINTS,
                headers: &http::HeaderMap::new(),
            });
        }
        if attempt + 1 < life.attempts {
            continue;
        }
        if !life.first_byte_before_upload_end {
            recorder.emit(RequestEvent::UploadEnd);
            step!();
        }
        let read_at = now();
        step!();
        recorder.emit(RequestEvent::FirstByte(read_at));
        if let Some(trace) = trace.filter(|_| life.early_rejected) {
            let mut trace = ConnectionTrace::clone(&trace);
            if let Some(tls) = &mut trace.tls {
                tls.end = Some(now());
            }
            let (dial, at) = (Arc::new(trace), now());
            recorder.emit(RequestEvent::EarlyRejected { dial, at });
            check(&recorder.timing());
        }
        recorder.emit(RequestEvent::Headers);
        step!();
        if life.first_byte_before_upload_end {
            recorder.emit(RequestEvent::UploadEnd);
        }
        for _ in 0..life.reads {
            recorder.emit(RequestEvent::ReadStart);
            step!();
            recorder.emit(RequestEvent::ReadEnd);
            step!();
        }
    }
    recorder.emit(RequestEvent::End);
    recorder.timing()
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

proptest! {
    #[test]
    fn phases_add_up_to_the_total_whatever_happens(life in life()) {
        let timing = paused().block_on(live(&life));
        check(&timing);
        prop_assert!(timing.is_complete());
    }
}

#[test]
fn delay_in_one_phase_shows_in_that_phase_and_nowhere_else() {
    /// A request whose every phase takes 1 ms but `slow`, which takes 1 s more.
    async fn with_delay(slow: Option<Phase>) -> RequestTiming {
        let spend = async |phase: Phase| {
            let extra = if slow == Some(phase) { 1000 } else { 0 };
            tokio::time::advance(Duration::from_millis(1 + extra)).await;
        };
        let mut recorder = RequestRecorder::start(None);
        recorder.emit(RequestEvent::AttemptStart);
        spend(Phase::Retry).await;
        recorder.emit(RequestEvent::AttemptStart);
        let enter = now();
        spend(Phase::Queue).await;
        recorder.emit(RequestEvent::Waited(Waited {
            why: WaitCause::Limit,
            enter,
            leave: now(),
        }));
        let dial = DialRecorder::new();
        let addr = "127.0.0.1:1".parse().unwrap();
        dial.emit(DialEvent::LookupStart);
        spend(Phase::Dns).await;
        dial.emit(DialEvent::ConnectStart(addr));
        spend(Phase::Tcp).await;
        dial.emit(DialEvent::ConnectEnd(addr, AttemptOutcome::Won));
        dial.emit(DialEvent::ProxyStart);
        spend(Phase::Proxy).await;
        dial.emit(DialEvent::ProxyEnd);
        dial.emit(DialEvent::TlsStart);
        spend(Phase::Tls).await;
        dial.emit(DialEvent::TlsEnd(TlsFacts {
            resumed: false,
            hello_retry: false,
            version: "",
            cipher_suite: "",
            group: None,
            alpn: None,
            early_data: crate::timing::EarlyData::NotOffered,
        }));
        dial.emit(DialEvent::ProtocolStart);
        spend(Phase::Protocol).await;
        dial.emit(DialEvent::Ready);
        let dial = Some(Arc::new(dial.trace()));
        recorder.emit(RequestEvent::Acquired {
            how: ConnectionUse::New,
            dial,
        });
        spend(Phase::Send).await;
        recorder.emit(RequestEvent::UploadEnd);
        spend(Phase::Wait).await;
        recorder.emit(RequestEvent::FirstByte(now()));
        recorder.emit(RequestEvent::Headers);
        recorder.emit(RequestEvent::ReadStart);
        spend(Phase::Receive).await;
        recorder.emit(RequestEvent::End);
        recorder.timing()
    }

    let runtime = paused();
    let usual = runtime.block_on(with_delay(None));
    for slow in Phase::ALL {
        let timing = runtime.block_on(with_delay(Some(slow)));
        check(&timing);
        for phase in Phase::ALL {
            let before = usual.get(phase).expect("every phase happens");
            let extra = timing.get(phase).unwrap() - before;
            let expected = if phase == slow { 1000 } else { 0 };
            assert_eq!(
                extra,
                Duration::from_millis(expected),
                "{slow} slow, {phase}"
            );
        }
    }
}

#[test]
fn phase_open_at_the_end_ends_there_and_later_ones_are_absent() {
    paused().block_on(async {
        let mut recorder = RequestRecorder::start(None);
        recorder.emit(RequestEvent::AttemptStart);
        let dial = DialRecorder::new();
        recorder.waiting(WaitCause::Dial, now(), Some(dial.clone()));
        dial.emit(DialEvent::LookupStart);
        pass(300).await;
        dial.emit(DialEvent::ConnectStart("127.0.0.1:1".parse().unwrap()));
        pass(200).await;
        recorder.emit(RequestEvent::End);
        let timing = recorder.timing();
        check(&timing);
        assert_eq!(timing.dns(), Some(Duration::from_micros(300)));
        assert_eq!(timing.tcp(), Some(Duration::from_micros(200)));
        assert_eq!(
            (timing.tls(), timing.send(), timing.receive()),
            (None, None, None)
        );
        assert_eq!(timing.current_phase(), Phase::Tcp);
    });
}

#[test]
fn handshake_that_fails_is_tls_and_the_next_attempt_is_tcp_again() {
    paused().block_on(async {
        let dial = DialRecorder::new();
        let [a, b] = ["127.0.0.1:1", "127.0.0.2:1"].map(|addr| addr.parse().unwrap());
        let phases = || {
            let trace = dial.trace();
            (trace.get(Phase::Tcp), trace.get(Phase::Tls))
        };
        let us = |n| Some(Duration::from_micros(n));
        dial.emit(DialEvent::ConnectStart(a));
        pass(100).await;
        dial.emit(DialEvent::Established {
            addr: a,
            fast_open: false,
        });
        assert_eq!(dial.current_phase(), Phase::Tls);
        pass(200).await;
        dial.emit(DialEvent::ConnectEnd(a, AttemptOutcome::HandshakeFailed));
        assert_eq!(dial.current_phase(), Phase::Tls);
        dial.emit(DialEvent::ConnectStart(b));
        assert_eq!(dial.current_phase(), Phase::Tcp);
        pass(50).await;
        dial.emit(DialEvent::Established {
            addr: b,
            fast_open: false,
        });
        pass(70).await;
        dial.emit(DialEvent::ConnectEnd(b, AttemptOutcome::HandshakeFailed));
        dial.emit(DialEvent::Failed);
        assert_eq!(phases(), (us(350), us(70)));
    });
}

struct Slow;

impl EventListener for Slow {}

/// Who is told of the progress may take his time, which is not the caller's.
#[test]
fn time_of_a_listener_belongs_to_the_read() {
    paused().block_on(async {
        let mut recorder = RequestRecorder::start(Some(Listener(Arc::new(Slow))));
        recorder.emit(RequestEvent::AttemptStart);
        let how = ConnectionUse::Idle;
        recorder.emit(RequestEvent::Acquired { how, dial: None });
        recorder.emit(RequestEvent::FirstByte(now()));
        recorder.emit(RequestEvent::Headers);
        recorder.emit(RequestEvent::ReadStart);
        recorder.emit(RequestEvent::AtHand(now()));
        recorder.emit(RequestEvent::BodyReceived {
            bytes: 1,
            total: None,
        });
        pass(30).await;
        recorder.emit(RequestEvent::End);
        let timing = recorder.timing();
        let us = |n| Some(Duration::from_micros(n));
        assert_eq!((timing.receive(), timing.receive_paused()), (us(30), us(0)));
    });
}

/// A read that found its data at hand is stamped when it began, and says nothing of the time after it.
#[test]
fn read_at_hand_takes_no_time_and_what_follows_is_measured() {
    paused().block_on(async {
        let mut recorder = RequestRecorder::start(None);
        recorder.emit(RequestEvent::AttemptStart);
        let how = ConnectionUse::Idle;
        recorder.emit(RequestEvent::Acquired { how, dial: None });
        recorder.emit(RequestEvent::UploadEnd);
        recorder.emit(RequestEvent::FirstByte(now()));
        recorder.emit(RequestEvent::Headers);
        pass(10).await;
        // This one waits.
        recorder.emit(RequestEvent::ReadStart);
        pass(40).await;
        recorder.emit(RequestEvent::ReadStart);
        assert_eq!(recorder.read_at(), None, "it began before it waited");
        recorder.emit(RequestEvent::AtHand(now()));
        recorder.emit(RequestEvent::ReadEnd);
        pass(20).await;
        recorder.emit(RequestEvent::ReadStart);
        let at = recorder.read_at().expect("it has not waited");
        recorder.emit(RequestEvent::AtHand(at));
        recorder.emit(RequestEvent::ReadEnd);
        pass(80).await;
        recorder.emit(RequestEvent::End);
        let timing = recorder.timing();
        check(&timing);
        let us = |n| Some(Duration::from_micros(n));
        assert_eq!(
            (timing.receive(), timing.receive_paused()),
            (us(150), us(110))
        );
    });
}
