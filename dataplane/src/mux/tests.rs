//! Two trunks with a network in memory between them, and one with a peer that keeps to nothing.

#[allow(unreachable_pub, reason = "the same file is a module of the mesh tests' harness")]
#[path = "../../../tests/src/random.rs"]
mod random;

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_codec::mux::{Cause, FIRST_OPTIONAL_KIND, Frame, Frames, HEADER_BYTES, INITIAL_WINDOW_BYTES, data_header};
use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::memory::{self, Network, block_on};
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Idle, Stream};

use random::Random;

use super::care::Patience;
use super::pump::{self, Over};
use super::trunk::{Broken, Ends, Side, Trunk};
use super::{Channel, limits};

const UNUSED: Duration = Duration::from_secs(60);
const PATIENCE: Patience = Patience { greeting: Duration::from_secs(5), unused: UNUSED };

/// A trunk that runs in a task of its own.
struct Running {
    trunk: Rc<Trunk>,
    leave: Stop,
    over: Rc<RefCell<Option<Over>>>,
}

impl Running {
    fn begin(
        network: &Network,
        side: Side,
        stream: memory::Stream,
        most: u32,
        opened: impl FnMut(Channel) + 'static,
    ) -> Self {
        let trunk = Trunk::new(side, Ends::default(), most, network.now());
        let (leave, over) = (network.stop(), Rc::default());
        let running = Self { trunk: trunk.clone(), leave: leave.clone(), over };
        let (net, over) = (network.clone(), running.over.clone());
        ringmesh_ring::spawn(async move {
            let stop = net.stop();
            let ended = pump::run(&net, &trunk, &stream, PATIENCE, &stop, &leave, opened).await;
            over.replace(Some(ended));
        });
        running
    }

    fn client(network: &Network, stream: memory::Stream) -> Self {
        Self::begin(network, Side::Client, stream, 0, |_| panic!("an endpoint opens nothing"))
    }

    async fn over(&self) -> Over {
        loop {
            if let Some(over) = self.over.take() {
                return over;
            }
            pass(1).await;
        }
    }
}

/// Lets the others run for so many milliseconds of virtual time.
async fn pass(milliseconds: u64) {
    let stop = NETWORK.with(|network| network.borrow().as_ref().expect("in `world`").stop());
    let now = NETWORK.with(|network| network.borrow().as_ref().expect("in `world`").now());
    stop.set_deadline(Some(now + Duration::from_millis(milliseconds)));
    stop.stopped().await;
}

thread_local! {
    static NETWORK: RefCell<Option<Network>> = const { RefCell::new(None) };
}

/// Runs in worlds whose connections hold few bytes, and all there are.
fn world(check: impl AsyncFn(Network)) {
    for capacity in [1_000, usize::MAX / 2] {
        let network = Network::new(1);
        network.set_capacity_bytes(capacity);
        NETWORK.set(Some(network.clone()));
        block_on(&network, check(network.clone()));
        NETWORK.set(None);
    }
}

async fn write(channel: &Channel, bytes: &[u8]) -> Result<(), Error> {
    let mut output = Output::new();
    output.push_bytes(bytes);
    channel.flush(&mut output, &Stop::new()).await
}

/// Reads until `count` bytes are there, or the end.
async fn read(channel: &Channel, count: usize) -> Result<Vec<u8>, Error> {
    let (mut all, mut buffer) = (Vec::new(), Buffer::take(Size::Small));
    while all.len() < count && channel.fill(&mut buffer, &Stop::new()).await? > 0 {
        all.extend_from_slice(buffer.filled());
        buffer.clear();
        buffer.compact();
    }
    Ok(all)
}

/// Takes what is there without a copy, once something is.
async fn read_in_place(channel: &Channel, output: &mut Output) -> Result<usize, Error> {
    loop {
        channel.readable().await?;
        if let Some(received) = channel.try_receive(output, Size::Small)? {
            return Ok(received);
        }
    }
}

/// Sends back what comes, to its end.
fn echo(channel: Channel) {
    ringmesh_ring::spawn(async move {
        let mut buffer = Buffer::take(Size::Small);
        while let Ok(1..) = channel.fill(&mut buffer, &Stop::new()).await {
            if write(&channel, buffer.filled()).await.is_err() {
                return;
            }
            buffer.clear();
            buffer.compact();
        }
        let _gone = channel.shutdown_write();
    });
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    match result {
        Err(Error::Io(error)) => error.kind(),
        other => panic!("no error of the connection: {other:?}"),
    }
}

#[test]
fn bytes_of_many_channels_pass_both_ways_at_once_and_end_in_order() {
    world(async |network| {
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 100, echo);
        let client = Running::client(&network, near);
        pass(1).await;
        let done = Rc::new(Cell::new(0));
        for number in 0..20_usize {
            let channel = Rc::new(client.trunk.open().expect("there is room"));
            let sent: Rc<Vec<u8>> = Rc::new((0..(number + 1) * 20_000).map(|at| (at % 251 + number) as u8).collect());
            let (writer, bytes, done) = (channel.clone(), sent.clone(), done.clone());
            ringmesh_ring::spawn(async move {
                write(&writer, &bytes).await.expect("somebody reads");
                writer.shutdown_write().expect("it is open");
            });
            ringmesh_ring::spawn(async move {
                assert!(read(&channel, usize::MAX).await.expect("nothing breaks") == *sent, "{number}");
                assert!(matches!(channel.check_idle(), Ok(Idle::Closed)));
                done.set(done.get() + 1);
            });
        }
        while done.get() < 20 {
            pass(1).await;
        }
        assert_eq!((client.trunk.count(), server.trunk.count()), (0, 0));
        assert!(client.over.borrow().is_none());
    });
}

#[test]
fn what_is_ready_in_one_turn_leaves_in_one_send() {
    world(async |network| {
        let (near, far) = network.pair();
        let _server = Running::begin(&network, Side::Server, far, 100, echo);
        let client = Running::client(&network, near);
        pass(1).await;
        let channels: Vec<_> = (0..10).map(|_| client.trunk.open().expect("there is room")).collect();
        pass(1).await;
        network.record();
        for channel in &channels {
            write(channel, b"hello").await.expect("there is credit");
        }
        for channel in &channels {
            assert_eq!(read(channel, 5).await.expect("it comes back"), b"hello");
        }
        assert_eq!(network.take_flushed().len(), 2, "one send there and one back");
    });
}

#[test]
fn a_channel_that_nobody_reads_holds_its_window_and_neighbours_go_on() {
    world(async |network| {
        let (near, far) = network.pair();
        let held = Rc::new(RefCell::new(Vec::new()));
        let kept = held.clone();
        let first = Cell::new(true);
        let _server = Running::begin(&network, Side::Server, far, 100, move |channel| match first.replace(false) {
            true => kept.borrow_mut().push(channel),
            false => echo(channel),
        });
        let client = Running::client(&network, near);
        pass(1).await;
        let slow = Rc::new(client.trunk.open().expect("there is room"));
        let (writer, stop) = (slow.clone(), network.stop());
        let (taken, stopped) = (Rc::new(Cell::new(0)), stop.clone());
        let told = taken.clone();
        ringmesh_ring::spawn(async move {
            let mut output = Output::new();
            output.push_bytes(&vec![7; 1_000_000]);
            let result = writer.flush(&mut output, &stopped).await;
            assert!(matches!(result, Err(Error::Stopped(StopReason::Abort))));
            told.set(1_000_000 - output.len_bytes());
        });
        let other = client.trunk.open().expect("there is room");
        for _ in 0..50 {
            write(&other, &[9; 10_000]).await.expect("it is read");
            assert_eq!(read(&other, 10_000).await.expect("it comes back").len(), 10_000);
        }
        stop.trigger(StopReason::Abort);
        pass(1).await;
        assert_eq!(taken.get(), INITIAL_WINDOW_BYTES as usize);
        // Once it is read, it goes on.
        let late = held.borrow_mut().pop().expect("it was opened");
        assert_eq!(read(&late, taken.get()).await.expect("it is open").len(), taken.get());
        write(&slow, b"more").await.expect("there is credit again");
        assert_eq!(read(&late, 4).await.expect("it is open"), b"more");
    });
}

#[test]
fn channels_that_nobody_reads_leave_little_where_it_has_come_and_lose_nothing() {
    let most = Cell::new(0);
    world(async |network| {
        let (near, far) = network.pair();
        let held = Rc::new(RefCell::new(Vec::new()));
        let kept = held.clone();
        let server = Running::begin(&network, Side::Server, far, 100, move |channel| kept.borrow_mut().push(channel));
        let client = Running::client(&network, near);
        pass(1).await;
        let window: Vec<u8> = (0..INITIAL_WINDOW_BYTES).map(|at| (at / 7) as u8).collect();
        let channels: Vec<_> = (0..50).map(|_| client.trunk.open().expect("there is room")).collect();
        for channel in &channels {
            write(channel, &window).await.expect("there is credit");
        }
        pass(100).await;
        most.set(server.trunk.kept_bytes().max(most.get()));
        for (number, channel) in held.take().into_iter().enumerate() {
            // Some by each way, some by none.
            let mut output = Output::new();
            match number % 3 {
                0 => assert_eq!(read(&channel, window.len()).await.expect("it is open"), window),
                1 => {
                    while output.len_bytes() < window.len() {
                        read_in_place(&channel, &mut output).await.expect("it is open");
                    }
                    assert!(output.slices().flatten().eq(&window));
                }
                _ => {}
            }
        }
        assert_eq!(server.trunk.kept_bytes(), 0);
    });
    let bound = limits::MAX_KEPT_BYTES;
    assert!((bound / 2..=bound).contains(&most.get()), "large pieces stay, up to the bound: {}", most.get());
}

#[test]
fn a_close_a_reset_and_an_end_are_told_apart() {
    world(async |network| {
        let (near, far) = network.pair();
        let held = Rc::new(RefCell::new(Vec::new()));
        let kept = held.clone();
        let server = Running::begin(&network, Side::Server, far, 100, move |channel| kept.borrow_mut().push(channel));
        let client = Running::client(&network, near);
        pass(1).await;
        let [closed, reset, ended, unread] = [(); 4].map(|()| client.trunk.open().expect("there is room"));
        write(&unread, b"nobody takes this").await.expect("there is credit");
        pass(1).await;
        let [far_unread, far_ended, far_reset, far_closed] =
            [(); 4].map(|()| held.borrow_mut().pop().expect("it was opened"));
        write(&far_closed, b"last words").await.expect("there is credit");
        drop(far_closed);
        far_reset.reset_on_close();
        drop(far_reset);
        drop(far_unread);
        far_ended.shutdown_write().expect("it is open");
        pass(1).await;
        assert_eq!(read(&closed, usize::MAX).await.expect("an ordinary end"), b"last words");
        assert_eq!(kind(write(&closed, b"x").await), ErrorKind::BrokenPipe);
        assert_eq!(kind(read(&reset, 1).await), ErrorKind::ConnectionReset);
        assert_eq!(kind(read(&unread, 1).await), ErrorKind::ConnectionReset);
        assert_eq!(read(&ended, 1).await.expect("an ordinary end"), b"");
        write(&ended, b"half open").await.expect("the other half is open");
        assert_eq!(read(&far_ended, 9).await.expect("it is open"), b"half open");
        assert_eq!((client.trunk.count(), server.trunk.count()), (1, 1));
    });
}

#[test]
fn who_leaves_finishes_what_is_open_and_takes_what_was_on_its_way() {
    for leaves in [Side::Client, Side::Server] {
        world(async |network| {
            let (near, far) = network.pair();
            let server = Running::begin(&network, Side::Server, far, 100, echo);
            let client = Running::client(&network, near);
            pass(1).await;
            let channel = client.trunk.open().expect("there is room");
            if leaves == Side::Client { &client } else { &server }.leave.trigger(StopReason::Drain);
            // Neither side has moved yet.
            let late = client.trunk.open().expect("nothing was said yet");
            pass(1).await;
            assert!(client.trunk.open().is_none() && client.trunk.is_over());
            for channel in [&channel, &late] {
                write(channel, b"hello").await.expect("it is open");
                assert_eq!(read(channel, 5).await.expect("it is open"), b"hello");
            }
            drop((channel, late));
            assert!(matches!(client.over().await, Over::Done | Over::Lost));
            assert!(matches!(server.over().await, Over::Done | Over::Lost));
        });
    }
}

#[test]
fn channels_of_a_trunk_that_is_gone_are_told() {
    world(async |network| {
        let (near, far) = network.pair();
        let client = Running::client(&network, near);
        let channel = client.trunk.open().expect("one may be open before the greeting");
        drop(far);
        assert_eq!(kind(read(&channel, 1).await), ErrorKind::ConnectionReset);
        assert_eq!(kind(write(&channel, b"x").await), ErrorKind::ConnectionReset);
        assert!(matches!(client.over().await, Over::Lost));
        assert!(client.trunk.open().is_none());
    });
}

#[test]
fn a_trunk_without_channels_ends_after_its_time_and_a_silent_peer_is_asked() {
    world(async |network| {
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 100, echo);
        let client = Running::client(&network, near);
        drop(client.trunk.open());
        let begun = network.now();
        assert!(matches!(client.over().await, Over::Done | Over::Lost));
        assert!(matches!(server.over().await, Over::Done | Over::Lost));
        let took = network.now().saturating_since(begun);
        assert!(took > UNUSED && took < UNUSED * 3, "{took:?}");

        // One with an open channel stays as long as the other side answers, and no longer.
        let (near, far) = network.pair();
        let mut raw = Raw::new(far);
        let client = Running::client(&network, near);
        let _channel = client.trunk.open();
        raw.send(&Frame::Hello { channels: 10 }.encode()).await;
        let begun = network.now();
        let ping = raw.until(|frame| matches!(frame, Frame::Ping(_))).await;
        assert!(ping.contains("Ping"), "{ping}");
        assert!(matches!(client.over().await, Over::Dead));
        let took = network.now().saturating_since(begun);
        assert!(took > Duration::from_secs(40) && took < Duration::from_secs(120), "{took:?}");
    });
}

#[test]
fn who_does_not_greet_in_time_is_not_waited_for() {
    for side in [Side::Client, Side::Server] {
        world(async |network| {
            let (near, far) = network.pair();
            let _silent = Raw::new(far);
            let trunk = Running::begin(&network, side, near, 3, |_| panic!("nothing is opened"));
            let begun = network.now();
            let Over::Broken(broken) = trunk.over().await else { panic!("it goes on") };
            assert_eq!(broken.to_string(), "no greeting in time");
            let took = network.now().saturating_since(begun);
            assert!(took >= PATIENCE.greeting && took < PATIENCE.greeting * 2, "{took:?}");
        });
    }
}

/// A peer that writes what it likes.
struct Raw {
    stream: memory::Stream,
    buffer: Buffer,
    frames: Frames,
}

impl Raw {
    fn new(stream: memory::Stream) -> Self {
        Self { stream, buffer: Buffer::take(Size::Small), frames: Frames::default() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        let mut output = Output::new();
        output.push_bytes(bytes);
        let _gone = self.stream.flush(&mut output, &Stop::new()).await;
    }

    /// Reads until a frame is such a one; it as text.
    async fn until(&mut self, is_it: impl Fn(&Frame<'_>) -> bool) -> String {
        loop {
            while let Some((frame, taken)) = self.frames.next(self.buffer.filled()).expect("we keep to the rules") {
                let found = is_it(&frame).then(|| format!("{frame:?}"));
                self.buffer.consume(taken);
                if let Some(found) = found {
                    return found;
                }
            }
            self.buffer.compact();
            match self.stream.fill(&mut self.buffer, &Stop::new()).await {
                Ok(1..) => {}
                other => return format!("{other:?}"),
            }
        }
    }
}

/// What a server's trunk ends in that is sent these bytes, and what it opened.
async fn ends_in(network: &Network, bytes: Vec<u8>) -> String {
    let (near, far) = network.pair();
    let server = Running::begin(network, Side::Server, far, 3, std::mem::forget);
    let mut raw = Raw::new(near);
    raw.send(&bytes).await;
    pass(1).await;
    match server.over.take() {
        Some(Over::Broken(broken)) => broken.to_string(),
        Some(over) => format!("{over:?}"),
        None => "it goes on".to_owned(),
    }
}

fn frames(all: &[Frame<'_>]) -> Vec<u8> {
    all.iter().flat_map(|frame| frame.encode().to_vec()).collect()
}

const HELLO: Frame<'_> = Frame::Hello { channels: 1 };
const OPEN: Frame<'_> = Frame::Open { channel: 1 };

#[test]
fn a_peer_that_breaks_the_rules_ends_its_trunk() {
    let with_data = move |count: usize, end: bool| {
        let mut bytes = frames(&[HELLO, OPEN]);
        let mut left = count;
        while left > 0 {
            let part = left.min(16_000);
            bytes.extend(data_header(1, part, end && part == left));
            bytes.resize(bytes.len() + part, 7);
            left -= part;
        }
        bytes
    };
    let behind_the_end = move || [with_data(10, true), data_header(1, 1, false).to_vec(), vec![1]].concat();
    type Row = (&'static str, Box<dyn Fn() -> Vec<u8>>, &'static str);
    let table: Vec<Row> = vec![
        ("no greeting", Box::new(|| frames(&[OPEN])), "the first frame is no greeting"),
        ("two greetings", Box::new(|| frames(&[HELLO, HELLO])), "a second greeting"),
        ("a number again", Box::new(|| frames(&[HELLO, OPEN, OPEN])), "a channel that the sender may not open"),
        ("data of nobody", Box::new(|| frames(&[HELLO, Frame::Close { channel: 1 }])), "never opened"),
        ("HTTP", Box::new(|| b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()), "frame of kind 71 with"),
        ("a window", Box::new(move || with_data(INITIAL_WINDOW_BYTES as usize, false)), "it goes on"),
        ("a byte more", Box::new(move || with_data(INITIAL_WINDOW_BYTES as usize + 1, false)), "than there was credit"),
        ("behind the end", Box::new(behind_the_end), "bytes behind the end"),
        (
            "credit beyond all numbers",
            Box::new(|| frames(&[HELLO, OPEN, Frame::Credit { channel: 1, bytes: u32::MAX }])),
            "than there was credit",
        ),
        ("of a later release", Box::new(|| frames(&[HELLO, Frame::Skipped, OPEN])), "it goes on"),
        (
            "more channels than it may",
            Box::new(|| frames(&(1..9).map(|channel| Frame::Open { channel }).collect::<Vec<_>>())),
            "the first frame",
        ),
    ];
    world(async |network| {
        for (name, bytes, expected) in &table {
            let found = ends_in(&network, bytes()).await;
            assert!(found.contains(expected), "{name}: {found}");
        }
    });
}

#[test]
fn channels_beyond_the_limit_are_refused_and_the_others_stay() {
    world(async |network| {
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 3, echo);
        let mut raw = Raw::new(near);
        let opened: Vec<_> = (1..=5).map(|channel| Frame::Open { channel }).collect();
        raw.send(&frames(&[HELLO])).await;
        raw.send(&frames(&opened)).await;
        for channel in [4, 5] {
            let refused = raw.until(|frame| matches!(frame, Frame::Reset { .. })).await;
            assert_eq!(refused, format!("{:?}", Frame::Reset { channel, cause: Cause::Refused }));
        }
        assert_eq!(server.trunk.count(), 3);
        raw.send(&[&data_header(2, 2, true)[..], b"hi"].concat()).await;
        let back = raw.until(|frame| matches!(frame, Frame::Data { .. })).await;
        assert!(back.contains("channel: 2"), "{back}");
        assert!(server.over.borrow().is_none());
    });
}

#[test]
fn floods_end_a_trunk_and_ordinary_use_does_not() {
    let rapid: Vec<_> = (1..20_000)
        .flat_map(|channel| [Frame::Open { channel }, Frame::Reset { channel, cause: Cause::Cancelled }])
        .collect();
    let empty = Frame::Data { channel: 1, bytes: &[], end: false };
    let table: [(&str, Vec<Frame<'_>>, &str); 6] = [
        ("pings", vec![Frame::Ping([0; 8]); 50_000], "flood"),
        ("unknown frames", vec![Frame::Skipped; 50_000], "flood"),
        ("credit", [vec![OPEN], vec![Frame::Credit { channel: 1, bytes: 1 }; 50_000]].concat(), "flood"),
        ("empty data", [vec![OPEN], vec![empty; 50_000]].concat(), "flood"),
        ("rapid resets", rapid, "flood"),
        ("a few of each", vec![Frame::Ping([0; 8]), Frame::Skipped, OPEN, Frame::Close { channel: 1 }], "it goes on"),
    ];
    const { assert!(FIRST_OPTIONAL_KIND > 8 && HEADER_BYTES == 8) };
    world(async |network| {
        for (name, flood, expected) in &table {
            let bytes = [frames(&[HELLO]), frames(flood)].concat();
            let found = ends_in(&network, bytes).await;
            assert!(found.contains(expected), "{name}: {found}");
        }
    });
}

#[test]
fn bytes_for_channels_that_are_over_are_free_as_far_as_they_can_have_been_on_their_way() {
    let window = INITIAL_WINDOW_BYTES as usize;
    let data = |channel: u32, count: usize| -> Vec<u8> {
        let frame = |part: usize| [data_header(channel, part, false).to_vec(), vec![7; part]].concat();
        let parts = (0..count.div_ceil(16_000)).map(|part| frame((count - part * 16_000).min(16_000)));
        parts.collect::<Vec<_>>().concat()
    };
    // Whatever is opened ends at once, or is refused.
    for most in [3, 0] {
        world(async |network| {
            network.set_capacity_bytes(usize::MAX / 2);
            let (near, far) = network.pair();
            let server = Running::begin(&network, Side::Server, far, most, drop);
            let mut raw = Raw::new(near);
            raw.send(&frames(&[HELLO])).await;
            // More than the whole allowance would pay for.
            for channel in 1..=1_000 {
                raw.send(&[&frames(&[Frame::Open { channel }]), &data(channel, window)[..]].concat()).await;
            }
            pass(1).await;
            assert!(server.over.borrow().is_none(), "it could not know");
            let begun = network.now();
            let mut beyond = 0;
            while server.over.borrow().is_none() && beyond < 120_000_000 {
                raw.send(&data(1_000, 1_000_000)).await;
                beyond += 1_000_000;
                pass(1).await;
            }
            let earned = network.now().saturating_since(begun).as_secs() as usize + 1;
            // What has come back meanwhile is added when the first is used up.
            let allowed = 2 * limits::MAX_CREDIT as usize + earned * limits::CREDIT_PER_SECOND as usize;
            assert!(beyond <= allowed * limits::LATE_BYTES, "{beyond} bytes for nobody");
            assert!(matches!(server.over().await, Over::Broken(Broken::Flood)));
        });
    }
}

#[test]
fn a_few_bytes_do_not_pay_for_a_reset() {
    few_bytes_do_not_pay_for(|channel| Frame::Reset { channel, cause: Cause::Cancelled });
}

#[test]
fn a_few_bytes_do_not_pay_for_the_end_of_a_channel_in_which_something_was_asked() {
    few_bytes_do_not_pay_for(|channel| Frame::Close { channel });
}

#[test]
fn channels_whose_user_has_an_answer_may_be_closed_as_often_as_they_are_opened() {
    world(async |network| {
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 100, echo);
        let client = Running::client(&network, near);
        pass(1).await;
        for _ in 0..20_000 {
            let channel = client.trunk.open().expect("there is room");
            write(&channel, b"hello").await.expect("there is credit");
            assert_eq!(read(&channel, 5).await.expect("it comes back"), b"hello");
        }
        assert!(server.over.borrow().is_none());
    });
}

fn few_bytes_do_not_pay_for(end: impl Fn(u32) -> Frame<'static>) {
    world(async |network| {
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 100, |channel| {
            ringmesh_ring::spawn(async move { drop(read(&channel, usize::MAX).await) });
        });
        let mut raw = Raw::new(near);
        raw.send(&frames(&[HELLO])).await;
        for channel in 1..20_000 {
            let byte = [&data_header(channel, 1, false)[..], b"x"].concat();
            raw.send(&[frames(&[Frame::Open { channel }]), byte.repeat(10), frames(&[end(channel)])].concat()).await;
            if channel % 100 == 0 {
                pass(1).await;
            }
        }
        assert!(matches!(server.over.take(), Some(Over::Broken(Broken::Flood))));
    });
}

#[test]
fn a_channel_that_waits_for_room_hears_of_its_end() {
    world(async |network| {
        network.set_capacity_bytes(1_000);
        let (near, far) = network.pair();
        let ended = Rc::new(RefCell::new(Vec::new()));
        let told = ended.clone();
        let server = Running::begin(&network, Side::Server, far, 20, move |channel| {
            let told = told.clone();
            ringmesh_ring::spawn(async move {
                // More than all of them may put on the trunk together.
                let result = write(&channel, &[7; 60_000]).await;
                told.borrow_mut().push(result.map_err(|error| error.to_string()));
                // Nothing of it is forgotten meanwhile.
                std::future::pending::<()>().await;
            });
        });
        let mut raw = Raw::new(near);
        let opened: Vec<_> = (1..=20).map(|channel| Frame::Open { channel }).collect();
        raw.send(&frames(&[&[HELLO][..], &opened].concat())).await;
        pass(1).await;
        let waiting = 20 - ended.borrow().len();
        assert!(waiting > 5 && ended.borrow().iter().all(Result::is_ok), "{waiting} wait for room");
        let resets: Vec<_> = (1..=20).map(|channel| Frame::Reset { channel, cause: Cause::Cancelled }).collect();
        raw.send(&frames(&resets)).await;
        pass(1).await;
        assert_eq!((ended.borrow().len(), server.trunk.count()), (20, 0));
        assert_eq!(ended.borrow().iter().filter(|result| result.is_err()).count(), waiting);
    });
}

#[test]
fn channels_that_wait_for_room_wait_once_each_and_those_that_are_dropped_no_more() {
    world(async |network| {
        network.set_capacity_bytes(1_000);
        let (near, far) = network.pair();
        let client = Running::client(&network, near);
        let mut raw = Raw::new(far);
        raw.send(&frames(&[Frame::Hello { channels: 100 }])).await;
        pass(1).await;
        let (sent, left) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let mut stops = Vec::new();
        for _ in 0..60 {
            let channel = client.trunk.open().expect("there is room");
            let (sent, left, stop) = (sent.clone(), left.clone(), network.stop());
            stops.push(stop.clone());
            ringmesh_ring::spawn(async move {
                let mut output = Output::new();
                output.push_bytes(&[7; 60_000]);
                if channel.flush(&mut output, &stop).await.is_ok() {
                    sent.set(sent.get() + 1);
                    std::future::pending::<()>().await;
                }
                left.set(left.get() + 1);
            });
        }
        pass(1).await;
        let waiting = 60 - sent.get();
        assert!(waiting > 50, "{waiting} wait");
        assert_eq!(client.trunk.crowd(), waiting);
        // Every other one has enough of it.
        for stop in stops.iter().step_by(2) {
            stop.trigger(StopReason::Abort);
        }
        pass(1).await;
        assert!(left.get() > 20, "{} have left", left.get());
        assert_eq!(client.trunk.crowd(), waiting - left.get());
        // The others are woken, each where it stands now.
        while sent.get() < 60 - left.get() {
            raw.until(|frame| matches!(frame, Frame::Data { .. })).await;
        }
        assert_eq!(client.trunk.crowd(), 0);
    });
}

#[test]
fn credit_waits_while_the_other_side_takes_nothing_and_comes_when_it_does() {
    world(async |network| {
        let (near, far) = network.pair();
        let client = Running::client(&network, near);
        let mut raw = Raw::new(far);
        raw.send(&frames(&[HELLO])).await;
        pass(1).await;
        let channel = client.trunk.open().expect("there is room");
        let window = INITIAL_WINDOW_BYTES as usize;
        for _ in 0..8 {
            raw.send(&[&data_header(1, window / 8, false)[..], &vec![7; window / 8]].concat()).await;
        }
        pass(1).await;
        let waits = || client.trunk.output.borrow().len_bytes();
        while waits() < limits::MAX_OWED_BYTES {
            client.trunk.send(&Frame::Ping([0; 8]));
        }
        let before = waits();
        assert_eq!(read(&channel, window).await.expect("it has come").len(), window);
        assert_eq!(waits(), before, "nothing is added to what it does not take");
        let credit = raw.until(|frame| matches!(frame, Frame::Credit { .. })).await;
        assert_eq!(credit, format!("{:?}", Frame::Credit { channel: 1, bytes: 2 * INITIAL_WINDOW_BYTES }));
    });
}

#[test]
fn who_opens_and_ends_channels_and_takes_no_answer_is_cut_off() {
    world(async |network| {
        network.set_capacity_bytes(1_000);
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 3, echo);
        let mut raw = Raw::new(near);
        raw.send(&frames(&[HELLO])).await;
        let most = 2 * limits::MAX_OWED_BYTES / HEADER_BYTES;
        let mut channel = 0;
        while server.over.borrow().is_none() {
            assert!(channel < most as u32, "{} bytes wait", server.trunk.output.borrow().len_bytes());
            let three = (channel + 1..=channel + 3).flat_map(|channel| {
                let end = data_header(channel, 0, true);
                [&frames(&[Frame::Open { channel }])[..], &end].concat()
            });
            channel += 3;
            raw.send(&three.collect::<Vec<_>>()).await;
            pass(1).await;
            assert!(server.trunk.output.borrow().len_bytes() < limits::MAX_OWED_BYTES + 1_000);
        }
        assert!(matches!(server.over().await, Over::Broken(Broken::Flood)));
    });
}

#[test]
fn who_says_goodbye_and_takes_nothing_is_not_waited_for() {
    world(async |network| {
        network.set_capacity_bytes(1_000);
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 3, |channel| {
            ringmesh_ring::spawn(async move { write(&channel, &[7; 60_000]).await.expect("there is credit") });
        });
        let mut raw = Raw::new(near);
        raw.send(&frames(&[HELLO, OPEN, Frame::GoAway])).await;
        pass(UNUSED.as_millis() as u64).await;
        assert!(server.over.borrow().is_none(), "it may be slow");
        pass(1_000).await;
        assert!(matches!(server.over.take(), Some(Over::Stopped)));
    });
}

#[test]
fn a_reader_that_keeps_up_gets_a_larger_window_and_one_that_does_not_keeps_the_first() {
    world(async |network| {
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 100, echo);
        let client = Running::client(&network, near);
        pass(1).await;
        let channel = Rc::new(client.trunk.open().expect("there is room"));
        let writer = channel.clone();
        ringmesh_ring::spawn(async move {
            for _ in 0..200 {
                write(&writer, &[1; 50_000]).await.expect("it is read");
            }
        });
        assert_eq!(read(&channel, 10_000_000).await.expect("it comes back").len(), 10_000_000);
        assert!(server.trunk.extra.get() < limits::MAX_EXTRA_BYTES, "it has grown");
        assert!(limits::MAX_EXTRA_BYTES - server.trunk.extra.get() <= limits::MAX_WINDOW_BYTES);
        drop(channel);
        pass(1).await;
        assert_eq!(server.trunk.extra.get(), limits::MAX_EXTRA_BYTES, "and is given back");
    });
}

#[test]
fn broken_tells_what_was_wrong() {
    assert_eq!(Broken::Window(7).to_string(), "more bytes in channel 7 than there was credit for");
}

/// Takes what comes, to its end.
fn sink(channel: Channel) {
    ringmesh_ring::spawn(async move {
        let mut buffer = Buffer::take(Size::Small);
        while let Ok(1..) = channel.fill(&mut buffer, &Stop::new()).await {
            buffer.clear();
            buffer.compact();
        }
    });
}

#[test]
fn channels_with_little_to_say_have_their_turn_beside_those_that_always_have_more() {
    for busy in [3, 20] {
        world(async |network| little_goes_beside(busy, network).await);
    }
}

/// What one channel has to say goes out in its turn while `busy` others never come to an end.
async fn little_goes_beside(busy: usize, network: Network) {
    network.set_capacity_bytes(10_000);
    let (near, far) = network.pair();
    let _server = Running::begin(&network, Side::Server, far, 100, sink);
    let client = Running::client(&network, near);
    pass(1).await;
    let (sent, begins) = (Rc::new(Cell::new(0)), network.stop());
    for _ in 0..busy {
        let (channel, sent, begins) = (client.trunk.open().expect("there is room"), sent.clone(), begins.clone());
        ringmesh_ring::spawn(async move {
            while sent.get() < 50_000_000 && write(&channel, &[7; 100_000]).await.is_ok() {
                sent.set(sent.get() + 100_000);
                if sent.get() > 10_000_000 {
                    begins.trigger(StopReason::Abort);
                }
            }
        });
    }
    let (channel, went_first) = (client.trunk.open().expect("there is room"), Rc::new(Cell::new(None)));
    let told = went_first.clone();
    ringmesh_ring::spawn(async move {
        begins.stopped().await;
        let before = sent.get();
        write(&channel, b"hello").await.expect("it is read");
        told.set(Some(sent.get() - before));
    });
    while went_first.get().is_none() {
        pass(1).await;
    }
    let bytes = went_first.get().expect("just looked");
    assert!(bytes <= (busy + 1) * limits::MAX_WAITING_BYTES, "{bytes} bytes of others went first");
}

#[test]
fn a_trunk_of_a_server_that_takes_no_channels_is_left() {
    world(async |network| {
        let (near, far) = network.pair();
        let client = Running::client(&network, near);
        let mut raw = Raw::new(far);
        let channel = client.trunk.open();
        let begun = network.now();
        raw.send(&frames(&[Frame::Hello { channels: 0 }])).await;
        pass(1).await;
        assert!(client.trunk.is_over());
        drop(channel);
        raw.send(&frames(&[Frame::GoAway])).await;
        assert!(matches!(client.over().await, Over::Done | Over::Lost));
        assert!(network.now().saturating_since(begun) < UNUSED / 2);
    });
}

#[test]
fn what_is_said_last_arrives_although_its_reader_still_grants_credit() {
    world(async |network| {
        network.set_capacity_bytes(1_000);
        let (near, far) = network.pair();
        let server = Running::begin(&network, Side::Server, far, 100, |channel| {
            ringmesh_ring::spawn(async move {
                assert_eq!(read(&channel, usize::MAX).await.expect("nothing breaks"), b"all?");
                write(&channel, &[7; 300_000]).await.expect("it is read");
                channel.shutdown_write().expect("it is open");
            });
        });
        let client = Running::client(&network, near);
        pass(1).await;
        let channel = client.trunk.open().expect("there is room");
        write(&channel, b"all?").await.expect("it is read");
        channel.shutdown_write().expect("it is open");
        server.leave.trigger(StopReason::Drain);
        assert_eq!(read(&channel, usize::MAX).await.expect("nothing breaks").len(), 300_000);
        drop(channel);
        let begun = network.now();
        assert!(matches!(client.over().await, Over::Done | Over::Lost));
        assert!(matches!(server.over().await, Over::Done | Over::Lost));
        assert!(network.now().saturating_since(begun) < Duration::from_secs(1), "nobody waits for nothing");
    });
}

#[test]
fn a_peer_that_is_silent_whenever_a_short_request_asks_is_given_up() {
    world(async |network| {
        let (near, far) = network.pair();
        let client = Running::client(&network, near);
        let mut raw = Raw::new(far);
        raw.send(&frames(&[Frame::Hello { channels: 100 }])).await;
        pass(1).await;
        let begun = network.now();
        // Each has two seconds, and another one follows a good while later.
        while client.over.borrow().is_none() {
            assert!(network.now().saturating_since(begun) < Duration::from_secs(120), "it goes on for ever");
            if let Some(channel) = client.trunk.open() {
                write(&channel, b"hello").await.expect("there is credit");
                pass(2_000).await;
            }
            pass(18_000).await;
        }
        assert!(matches!(client.over.take(), Some(Over::Dead)));
    });
}

#[test]
fn a_server_that_takes_nothing_is_not_written_to_without_an_end() {
    world(async |network| {
        network.set_capacity_bytes(1_000);
        let (near, far) = network.pair();
        let client = Running::client(&network, near);
        let mut raw = Raw::new(far);
        raw.send(&frames(&[Frame::Hello { channels: 100 }])).await;
        pass(1).await;
        for opened in 0.. {
            assert!(opened < 100_000, "{} bytes wait", client.trunk.output.borrow().len_bytes());
            if client.trunk.open().is_none() {
                break;
            }
        }
        assert!(client.trunk.output.borrow().len_bytes() < limits::MAX_OWED_BYTES + 1_000);
        // Once it takes something, it goes on.
        raw.until(|frame| matches!(frame, Frame::Close { channel: 20_000 })).await;
        assert!(client.trunk.open().is_some());
    });
}

#[test]
fn what_has_come_of_a_trunk_that_is_gone_is_read_before_its_end() {
    world(async |network| {
        let (near, far) = network.pair();
        let client = Running::client(&network, near);
        let mut raw = Raw::new(far);
        let channel = client.trunk.open().expect("one may be open before the greeting");
        raw.until(|frame| matches!(frame, Frame::Open { .. })).await;
        raw.send(&frames(&[Frame::Hello { channels: 2 }])).await;
        pass(1).await;
        let whole = client.trunk.open().expect("there is room");
        raw.until(|frame| matches!(frame, Frame::Open { channel: 2 })).await;
        for (channel, end) in [(1, false), (2, true)] {
            raw.send(&[&data_header(channel, 6, end)[..], b"answer"].concat()).await;
        }
        drop(raw);
        assert!(matches!(client.over().await, Over::Lost));
        assert_eq!(read(&channel, 6).await.expect("it has come"), b"answer");
        assert_eq!(kind(read(&channel, 1).await), ErrorKind::ConnectionReset);
        assert_eq!(read(&whole, usize::MAX).await.expect("it has come, to its end"), b"answer");
    });
}

#[test]
fn whatever_a_peer_sends_nothing_breaks_and_all_that_it_makes_us_hold_is_bounded() {
    for seed in 0..60_u64 {
        let failed = std::panic::catch_unwind(|| send_at_random(seed)).is_err();
        assert!(!failed, "seed {seed}");
    }
}

fn send_at_random(seed: u64) {
    let mut random = Random(seed);
    let network = Network::new(seed);
    network.set_capacity_bytes([100, 5_000, usize::MAX / 2][random.below(3)]);
    network.set_chunk_bytes([1, 7, 3_000, usize::MAX][random.below(4)]);
    NETWORK.set(Some(network.clone()));
    block_on(&network, async {
        const MOST: u32 = 5;
        let (near, far) = network.pair();
        let side = if random.below(2) == 0 { Side::Server } else { Side::Client };
        let (held, choices) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(Random(seed ^ 3))));
        let kept = held.clone();
        let use_it = move |channel: Channel| match choices.borrow_mut().below(4) {
            0 => echo(channel),
            1 => sink(channel),
            2 => kept.borrow_mut().push(channel),
            _ => channel.reset_on_close(),
        };
        let use_too = use_it.clone();
        let running = Running::begin(&network, side, near, MOST, use_it);

        let (peer, reads) = (Rc::new(far), random.below(3) > 0);
        let reader = peer.clone();
        if reads {
            ringmesh_ring::spawn(async move {
                let mut buffer = Buffer::take(Size::Small);
                while let Ok(1..) = reader.fill(&mut buffer, &Stop::new()).await {
                    buffer.clear();
                }
            });
        }
        let mut bytes = frames(&[Frame::Hello { channels: random.below(20) as u32 }]);
        let mut last = 0;
        for _ in 0..random.below(2_000) {
            // What ends the trunk at once comes seldom.
            let channel = match random.below(300) {
                0 => last + 1 + random.below(3) as u32,
                1..30 => random.below(last as usize + 1) as u32 + 1,
                _ => last.saturating_sub(random.below(MOST as usize) as u32).max(1),
            };
            if last > 0 && channel > last && random.below(200) > 0 {
                continue;
            }
            let next = match if last == 0 { 0 } else { random.below(20) } {
                0..4 if side == Side::Server => {
                    last += 1;
                    Frame::Open { channel: last }
                }
                0..2 => {
                    // Whoever opens channels does so now.
                    if let Some(channel) = running.trunk.open() {
                        last += 1;
                        use_too(channel);
                    }
                    Frame::Skipped
                }
                2..5 if random.below(100) == 0 => Frame::Credit { channel, bytes: u32::MAX },
                2..5 => Frame::Credit { channel, bytes: [1, 65_536, 1 << 20][random.below(3)] },
                5 => Frame::Close { channel },
                6 => Frame::Reset { channel, cause: Cause::Cancelled },
                7 => Frame::Ping([9; 8]),
                8 => Frame::Pong([9; 8]),
                9 if random.below(100) == 0 => Frame::GoAway,
                10 => {
                    held.borrow_mut().pop();
                    Frame::Skipped
                }
                11 if random.below(100) == 0 => Frame::Open { channel: u32::MAX - random.below(3) as u32 },
                _ => {
                    let count = [0, 1, 100, 16_384, 16_384][random.below(5)];
                    bytes.extend(data_header(channel, count, random.below(200) == 0));
                    bytes.resize(bytes.len() + count, 7);
                    continue;
                }
            };
            bytes.extend_from_slice(&next.encode());
            if random.below(4) == 0 {
                let (peer, stop, mut output) = (peer.clone(), network.stop(), Output::new());
                stop.set_deadline(Some(network.now() + Duration::from_secs(1)));
                output.push_bytes(&std::mem::take(&mut bytes));
                let _gone = peer.flush(&mut output, &stop).await;
                pass(random.below(3) as u64).await;
                let trunk = &running.trunk;
                assert!(trunk.count() <= MOST.max(20) && trunk.kept_bytes() <= limits::MAX_KEPT_BYTES);
                let waits = trunk.output.borrow().len_bytes();
                assert!(waits <= limits::MAX_OWED_BYTES + 2_000, "{waits} bytes wait");
                if running.over.borrow().is_some() {
                    break;
                }
            }
        }
        drop(peer);
        held.borrow_mut().clear();
        pass(300_000).await;
        assert!(running.over.borrow().is_some(), "it goes on without an end");
        assert_eq!((running.trunk.count(), running.trunk.kept_bytes(), running.trunk.crowd()), (0, 0, 0));
        assert_eq!(running.trunk.extra.get(), limits::MAX_EXTRA_BYTES);
    });
    NETWORK.set(None);
}

/// What one side of a channel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Ends its direction once all is sent, and reads to the end.
    Ends,
    /// Sends all, reads to the end, and closes.
    Closes,
    /// Sends a part of it, and breaks off.
    BreaksOff,
}

/// Which bytes a channel carries in one direction, told by where they are.
fn told(number: u32, side: Side, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8)).wrapping_add(number as usize * 7 + usize::from(side == Side::Server) * 101) as u8
}

/// One side of a channel: it sends `count` bytes, and checks those that come. `other` is what the other side does.
async fn take_part(
    channel: Rc<Channel>,
    (number, side): (u32, Side),
    (count, expected): (usize, usize),
    (own, other): (Manner, Manner),
    seed: u64,
) {
    let mut random = Random(seed);
    let sent = Rc::new(Cell::new(false));
    let (writer, is_sent) = (channel.clone(), sent.clone());
    let count = if own == Manner::BreaksOff { random.below(count + 1) } else { count };
    let mut pace = Random(seed ^ 1);
    ringmesh_ring::spawn(async move {
        let mut at = 0;
        while at < count {
            let piece = (pace.below(30_000) + 1).min(count - at);
            let bytes: Vec<u8> = (at..at + piece).map(|at| told(number, side, at)).collect();
            if let Err(error) = write(&writer, &bytes).await {
                assert_eq!(other, Manner::BreaksOff, "{error:?}");
                break;
            }
            at += piece;
            if pace.below(4) == 0 {
                pass(pace.below(5) as u64).await;
            }
        }
        match own {
            Manner::Ends => drop(writer.shutdown_write()),
            Manner::Closes => {}
            Manner::BreaksOff => writer.reset_on_close(),
        }
        is_sent.set(true);
    });
    let theirs = if side == Side::Server { Side::Client } else { Side::Server };
    let (mut at, mut buffer) = (0, Buffer::take(Size::Small));
    // Who breaks off does not read to the end; who closes ends no direction before.
    let wanted = match (own, other) {
        (Manner::BreaksOff, _) => random.below(expected + 1),
        (_, Manner::Closes) => expected,
        _ => usize::MAX,
    };
    let read = loop {
        if at >= wanted {
            break Ok(());
        }
        let mut output = Output::new();
        let received = if random.below(2) == 0 {
            channel.fill(&mut buffer, &Stop::new()).await
        } else {
            read_in_place(&channel, &mut output).await
        };
        match received {
            Ok(0) => break Ok(()),
            Ok(count) => assert_eq!(count, buffer.len() + output.len_bytes()),
            Err(error) => break Err(error),
        }
        for byte in output.slices().chain([buffer.filled()]).flatten() {
            assert_eq!(*byte, told(number, theirs, at), "byte {at} of channel {number}");
            at += 1;
        }
        buffer.clear();
        buffer.compact();
        if random.below(6) == 0 {
            pass(random.below(20) as u64).await;
        }
    };
    match read {
        Ok(()) if own != Manner::BreaksOff && other != Manner::BreaksOff => assert_eq!(at, expected, "all has come"),
        Ok(()) => assert!(at <= expected),
        Err(error) => assert_eq!((other, kind::<()>(Err(error))), (Manner::BreaksOff, ErrorKind::ConnectionReset)),
    }
    while !sent.get() {
        pass(1).await;
    }
}

#[test]
fn whatever_both_sides_do_bytes_come_whole_and_in_order_and_everything_ends() {
    for seed in 0..60_u64 {
        let failed = std::panic::catch_unwind(|| go_on_at_random(seed)).is_err();
        assert!(!failed, "seed {seed}");
    }
}

fn go_on_at_random(seed: u64) {
    let mut random = Random(seed);
    let network = Network::new(seed);
    network.set_capacity_bytes([3, 100, 5_000, 200_000][random.below(4)]);
    NETWORK.set(Some(network.clone()));
    block_on(&network, async {
        let (near, far) = network.pair();
        let plans: Rc<Vec<_>> = Rc::new(
            (0..=random.below(20))
                .map(|_| {
                    let most = [10, 5_000, 200_000][random.below(3)];
                    let counts = [(); 2].map(|()| random.below(most));
                    let manners = match random.below(5) {
                        0 => [Manner::BreaksOff, Manner::Ends],
                        1 => [Manner::Ends, Manner::BreaksOff],
                        2 => [Manner::Ends, Manner::Closes],
                        _ => [Manner::Ends, Manner::Ends],
                    };
                    (counts, manners, random.below(1_000_000) as u64)
                })
                .collect(),
        );
        let (done, opened, all) = (Rc::new(Cell::new(0)), Cell::new(0), plans.clone());
        let finished = done.clone();
        let server = Running::begin(&network, Side::Server, far, 100, move |channel| {
            let number = opened.get();
            opened.set(number + 1);
            let (counts, manners, seed) = all[number as usize];
            let part = take_part(
                Rc::new(channel),
                (number, Side::Server),
                (counts[1], counts[0]),
                (manners[1], manners[0]),
                seed ^ 77,
            );
            let finished = finished.clone();
            ringmesh_ring::spawn(async move {
                part.await;
                finished.set(finished.get() + 1);
            });
        });
        let client = Running::client(&network, near);
        pass(1).await;
        for (number, (counts, manners, seed)) in plans.iter().copied().enumerate() {
            while !client.trunk.takes_more() {
                pass(1).await;
            }
            let channel = Rc::new(client.trunk.open().expect("there is room"));
            let part = take_part(
                channel,
                (number as u32, Side::Client),
                (counts[0], counts[1]),
                (manners[0], manners[1]),
                seed,
            );
            let finished = done.clone();
            ringmesh_ring::spawn(async move {
                part.await;
                finished.set(finished.get() + 1);
            });
            pass(random.below(3) as u64).await;
        }
        let begun = network.now();
        while done.get() < 2 * plans.len() {
            pass(1).await;
            assert!(
                network.now().saturating_since(begun) < Duration::from_secs(1_000),
                "{} of {} ended",
                done.get(),
                2 * plans.len()
            );
        }
        pass(50).await;
        for side in [&client, &server] {
            assert!(side.over.borrow().is_none(), "{:?}", side.over.borrow());
            assert_eq!((side.trunk.count(), side.trunk.extra.get()), (0, limits::MAX_EXTRA_BYTES));
            assert_eq!(side.trunk.kept_bytes(), 0, "what was left where it came is counted off again");
        }
        client.leave.trigger(StopReason::Drain);
        assert!(matches!(client.over().await, Over::Done | Over::Lost));
        assert!(matches!(server.over().await, Over::Done | Over::Lost));
    });
    NETWORK.set(None);
}
