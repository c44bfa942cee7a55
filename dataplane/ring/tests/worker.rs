//! What a worker promises its tasks: fairness, deadlines, contained panics, and a clean end.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

mod common;

use std::cell::Cell;
use std::io::Write;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use common::{both, connection, on_every_driver, poll_once, unhurried};
use ringmesh_ring::{
    Address, Buffer, Driver, Error, Instant, Listener, Reason, Size, Socket, Stop, Stream, Wish, mailbox, panics, run,
    setup, sleep_until, spawn, yield_now,
};

#[test]
fn timers_and_fresh_connections_advance_beside_tasks_that_yield() {
    on_every_driver(|| async {
        let (listener, address) = common::listener();
        let target = listener.local_addr().unwrap();
        let listener = Listener::from_fd(listener.into()).unwrap();
        let busy = Rc::new(Cell::new(true));
        for _ in 0..3 {
            let busy = busy.clone();
            spawn(async move {
                while busy.get() {
                    yield_now().await;
                }
            });
        }
        let start = Instant::now();
        let client = std::thread::spawn(move || {
            let mut client = TcpStream::connect(target).unwrap();
            client.write_all(b"x").unwrap();
            client
        });
        listener.readable().await.unwrap();
        let (accepted, _) = listener.accept().unwrap().unwrap();
        let accepted = Socket::accepted(accepted).unwrap();
        let mut buffer = Buffer::take(Size::Small);
        assert_eq!(accepted.fill(&mut buffer, &unhurried()).await.unwrap(), 1);
        let own = Socket::connect(&address, None, &unhurried()).await.unwrap();
        sleep_until(start + Duration::from_millis(100)).await;
        let stop = Stop::new();
        stop.set_deadline(Some(Instant::now() + Duration::from_millis(50)));
        assert_eq!(stop.stopped().await, Reason::Deadline);

        let passed = Instant::now().saturating_since(start);
        busy.set(false);
        assert!(passed < Duration::from_secs(5), "it took {passed:?}");
        drop((own, client.join().unwrap()));
    });
}

#[test]
fn clients_have_their_options_from_their_listener() {
    on_every_driver(|| async {
        let (listener, _) = common::listener();
        let target = listener.local_addr().unwrap();
        let listener = Listener::from_fd(listener.into()).unwrap();
        listener.set_client_options(Some(Duration::from_secs(77)));
        let _client = TcpStream::connect(target).unwrap();
        listener.readable().await.unwrap();
        let (accepted, _) = listener.accept().unwrap().unwrap();
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        listener.set_client_options(None);
        let _client = TcpStream::connect(target).unwrap();
        listener.readable().await.unwrap();
        let (accepted, _) = listener.accept().unwrap().unwrap();
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && !socket.keepalive().unwrap());
    });
}

#[test]
fn a_listener_tells_again_of_a_client_that_was_left() {
    on_every_driver(|| async {
        let (listener, _) = common::listener();
        let target = listener.local_addr().unwrap();
        let listener = Listener::from_fd(listener.into()).unwrap();
        let _clients = [(); 2].map(|()| TcpStream::connect(target).unwrap());
        for _ in 0..2 {
            let (stop, mut readable) = (unhurried(), std::pin::pin!(listener.readable()));
            std::future::poll_fn(|context| match readable.as_mut().poll(context) {
                std::task::Poll::Ready(ready) => {
                    ready.unwrap();
                    std::task::Poll::Ready(())
                }
                std::task::Poll::Pending => stop.poll_stopped(context).map(|_| panic!("nobody tells of the client")),
            })
            .await;
            assert!(listener.accept().unwrap().is_some());
        }
    });
}

#[test]
fn yielding_tasks_take_turns() {
    on_every_driver(|| async {
        let turns: Rc<[Cell<u32>; 3]> = Rc::default();
        for n in 0..3 {
            let turns = turns.clone();
            spawn(async move {
                loop {
                    turns[n].set(turns[n].get() + 1);
                    yield_now().await;
                }
            });
        }
        while turns[0].get() < 1000 {
            yield_now().await;
        }
        for n in 1..3 {
            assert!(turns[n].get().abs_diff(turns[0].get()) < 10, "task {n} had {} turns", turns[n].get());
        }
    });
}

#[test]
fn panic_ends_its_task_alone_and_is_counted() {
    struct DropsBadly;
    impl Drop for DropsBadly {
        fn drop(&mut self) {
            panic!("expected by the test: in drop");
        }
    }
    on_every_driver(|| async {
        let before = panics();
        let (near, far) = connection();
        spawn(async move {
            let _near = near;
            yield_now().await;
            panic!("expected by the test");
        });
        let bad = DropsBadly;
        spawn(std::future::poll_fn(move |_| {
            let _held_until_the_future_is_dropped = &bad;
            std::task::Poll::Ready(())
        }));
        // The connection of the task that panicked is closed.
        let far = Socket::from_fd(far.into()).unwrap();
        assert_eq!(far.fill(&mut Buffer::take(Size::Small), &unhurried()).await.unwrap(), 0);
        while panics() < before + 2 {
            yield_now().await;
        }
        let alive = Rc::new(Cell::new(false));
        let seen = alive.clone();
        spawn(async move { seen.set(true) });
        yield_now().await;
        assert!(alive.get());
        assert_eq!(panics(), before + 2);
    });
}

#[test]
fn panic_of_the_main_future_is_passed_on_after_the_worker_has_ended() {
    for grant in setup::probe_all() {
        let unwound = std::panic::catch_unwind(|| {
            run(&grant, async {
                let (near, _far) = connection();
                spawn(async move {
                    let _ = near.fill(&mut Buffer::take(Size::Small), &Stop::new()).await;
                });
                yield_now().await;
                panic!("expected by the test");
            })
        });
        assert!(unwound.is_err());
        // The thread can be a worker again.
        run(&grant, yield_now()).unwrap();
    }
}

#[test]
fn deadlines_fire_in_time_and_never_early() {
    on_every_driver(|| async {
        let start = Instant::now();
        let stops: Vec<(Duration, Stop)> = [0, 1, 9, 10, 11, 35, 100, 640, 700, 1300]
            .into_iter()
            .map(|millis| {
                let stop = Stop::new();
                let after = Duration::from_millis(millis);
                stop.set_deadline(Some(start + after));
                (after, stop)
            })
            .collect();
        for (after, stop) in stops {
            assert_eq!(stop.stopped().await, Reason::Deadline);
            let passed = Instant::now().saturating_since(start);
            assert!(passed >= after, "{after:?} fired after {passed:?}");
            assert!(passed < after + Duration::from_millis(300), "{after:?} fired after {passed:?}");
        }
    });
}

#[test]
fn deadline_can_be_postponed_advanced_and_removed() {
    on_every_driver(|| async {
        let start = Instant::now();
        let after = |millis| Some(start + Duration::from_millis(millis));
        let (postponed, advanced, removed) = (Stop::new(), Stop::new(), Stop::new());
        postponed.set_deadline(after(20));
        postponed.set_deadline(after(200));
        advanced.set_deadline(after(60_000));
        // The worker is asleep until the far deadline when the near one is set.
        sleep_until(start + Duration::from_millis(50)).await;
        advanced.set_deadline(after(100));
        removed.set_deadline(after(80));
        removed.set_deadline(None);
        assert_eq!(advanced.stopped().await, Reason::Deadline);
        let passed = Instant::now().saturating_since(start);
        assert!((100..400).contains(&passed.as_millis()), "{passed:?}");
        assert_eq!(postponed.reason(), None);
        assert_eq!(postponed.stopped().await, Reason::Deadline);
        let passed = Instant::now().saturating_since(start);
        assert!((200..500).contains(&passed.as_millis()), "{passed:?}");
        assert_eq!(removed.reason(), None);
    });
}

#[test]
fn receive_that_nothing_answers_ends_at_its_deadline() {
    on_every_driver(|| async {
        let (near, _far) = connection();
        let stop = Stop::new();
        let start = Instant::now();
        stop.set_deadline(Some(start + Duration::from_millis(60)));
        let filled = near.fill(&mut Buffer::take(Size::Small), &stop).await;
        assert!(matches!(filled, Err(Error::Stopped(Reason::Deadline))));
        let passed = Instant::now().saturating_since(start);
        assert!((60..400).contains(&passed.as_millis()), "{passed:?}");
    });
}

#[test]
fn idle_worker_sleeps() {
    on_every_driver(|| async {
        let (near, _far) = connection();
        let (stop, end) = (Stop::new(), Stop::new());
        stop.set_deadline(Some(Instant::now() + Duration::from_secs(60)));
        end.set_deadline(Some(Instant::now() + Duration::from_millis(1500)));
        let switches = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = switches();
        assert!(poll_once(near.readable()).await.is_none());
        end.stopped().await;
        let woken = switches() - before;
        assert!(woken <= 8, "woke {woken} times in 1.5 s");
        assert_eq!(stop.reason(), None);
    });
}

#[test]
fn message_from_another_thread_wakes_a_worker() {
    on_every_driver(|| async {
        let (mut senders, mut receiver) = mailbox::mailbox(2, 16).unwrap();
        let threads: Vec<_> = senders
            .drain(..)
            .map(|mut sender| {
                std::thread::spawn(move || {
                    for n in 0..20_000u32 {
                        let mut message = n;
                        while let Err(mailbox::Full(back)) = sender.send(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let (mut count, mut sum) = (0, 0);
        while count < 40_000 {
            receiver.ready().await.unwrap();
            while let Some(message) = receiver.try_recv() {
                count += 1;
                sum += u64::from(message);
            }
        }
        assert_eq!(sum, 2 * (0..20_000).sum::<u64>());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn io_uring_is_granted_with_its_best_flags_or_says_why_not() {
    let all = setup::probe_all();
    assert_eq!(all.last().unwrap().driver, Driver::Epoll);
    let best = setup::probe(Wish::Auto).unwrap();
    assert_eq!(best.driver, all[0].driver);
    assert_eq!(setup::probe(Wish::Epoll).unwrap().driver, Driver::Epoll);
    match setup::probe(Wish::IoUring) {
        Ok(grant) => assert_eq!(grant.driver, all[0].driver),
        Err(error) => assert!(error.to_string().contains("demanded"), "{error}"),
    }
    if best.driver != Driver::IoUring(ringmesh_ring::RingFlags::DeferTaskrun) {
        assert!(best.reason.is_some());
    }
}

#[test]
fn connecting_is_refused_stopped_or_done() {
    on_every_driver(|| async {
        let (listener, address) = common::listener();
        let socket = Socket::connect(&address, None, &unhurried()).await.unwrap();
        let Address::Ip(expected) = address else { unreachable!() };
        assert_eq!(socket.peer_address(), Some(expected));

        drop(listener);
        match Socket::connect(&address, None, &unhurried()).await {
            Err(Error::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused),
            other => panic!("{other:?}"),
        }

        // Nobody answers once the backlog is full: the kernel drops further clients' packets.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let address = Address::Ip(full.local_addr().unwrap().as_socket().unwrap());
        let mut kept = Vec::new();
        loop {
            let stop = Stop::new();
            stop.set_deadline(Some(Instant::now() + Duration::from_millis(200)));
            match Socket::connect(&address, None, &stop).await {
                Ok(socket) => kept.push(socket),
                Err(Error::Stopped(Reason::Deadline)) => break,
                Err(error) => panic!("{error}"),
            }
            assert!(kept.len() < 10);
        }
    });
}

#[test]
fn unix_sockets_connect_also_through_a_full_backlog() {
    on_every_driver(|| async {
        let directory = tempfile();
        let path = directory.join("socket");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let address = Address::Unix(path);
        let (listener, mut clients) = (Listener::from_fd(listener.into()).unwrap(), Vec::new());
        let stop = unhurried();
        let connecting = async {
            for _ in 0..5 {
                clients.push(Socket::connect(&address, None, &stop).await.unwrap());
            }
        };
        let accepting = async {
            let mut accepted = 0;
            while accepted < 5 {
                sleep_until(Instant::now() + Duration::from_millis(20)).await;
                while let Some((_, address)) = listener.accept().unwrap() {
                    assert_eq!(address, None);
                    accepted += 1;
                }
            }
        };
        both(connecting, accepting).await;
        std::fs::remove_dir_all(directory).unwrap();
    });
}

fn tempfile() -> std::path::PathBuf {
    let name = format!("ringmesh-ring-{}-{:?}", std::process::id(), std::thread::current().id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}
