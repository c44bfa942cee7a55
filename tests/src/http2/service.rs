//! Fake services that speak HTTP/2: a thread a connection, as those of HTTP/1.1, and remembered by the same [`Service`].

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::connection::{Came, Connection};
use super::message::Outgoing;
use crate::certificates::Svid;
use crate::message::{Head, Message};
use crate::service::{Record, Service};
use crate::tls;
use crate::wait::DEADLINE;

/// Answers every request, once it is whole, with what `answer` makes of it.
pub fn service(answer: impl Fn(&Message) -> Outgoing + Send + Sync + 'static) -> Service {
    conversing(&[], answering(answer))
}

/// Like [`service`], behind TLS: shows this SVID, demands a certificate, and offers only HTTP/2.
///
/// # Panics
/// If key and certificate do not fit.
pub fn tls_service(svid: &Svid, answer: impl Fn(&Message) -> Outgoing + Send + Sync + 'static) -> Service {
    tls_conversing(svid, &[], answering(answer))
}

/// Leaves each connection, once it has said these settings, to `talk`, which may say whatever it likes; the connection is
/// closed when it returns.
pub fn conversing(
    settings: &[(u16, u32)],
    talk: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
) -> Service {
    Service::recording(talking(settings, talk))
}

/// Like [`service`], at this address.
///
/// # Panics
/// If the address cannot be had.
pub fn service_at(address: &str, answer: impl Fn(&Message) -> Outgoing + Send + Sync + 'static) -> Service {
    Service::recording_at(address, talking(&[], answering(answer)))
}

fn talking(
    settings: &[(u16, u32)],
    talk: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
) -> impl Fn(TcpStream, Record) + Send + Sync + 'static {
    let settings = settings.to_vec();
    move |stream, record| {
        let Ok(connection) = deadlines(&stream).and_then(|()| Connection::server(stream, &settings)) else { return };
        // What a client does to a service's connection is judged by the test, not here.
        let _ = talk(&mut connection.recorded(record));
    }
}

/// Like [`conversing`], behind TLS.
///
/// # Panics
/// If key and certificate do not fit.
pub fn tls_conversing(
    svid: &Svid,
    settings: &[(u16, u32)],
    talk: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
) -> Service {
    let (settings, config) = (settings.to_vec(), tls::server_config(svid, &[b"h2"]));
    Service::recording(move |stream, record| {
        let Ok(stream) = accept(&config, stream) else { return };
        let Ok(connection) = Connection::server(stream, &settings) else { return };
        let _ = talk(&mut connection.recorded(record));
    })
}

/// Finishes a handshake as a server.
fn accept(config: &Arc<ServerConfig>, stream: TcpStream) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    deadlines(&stream)?;
    let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    match stream.conn.alpn_protocol() {
        Some(b"h2") => Ok(stream),
        _ => Err(io::Error::other("the client does not choose HTTP/2")),
    }
}

fn deadlines(stream: &TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(DEADLINE))
}

fn answering(
    answer: impl Fn(&Message) -> Outgoing + Send + Sync + 'static,
) -> impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static {
    move |talk| {
        while let Some((stream, request)) = talk.next_request()? {
            match talk.send_message(stream, &answer(&request)) {
                // A client that has reset its stream needs no answer.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => result?,
            }
            talk.forget(stream);
        }
        Ok(())
    }
}

impl Connection {
    /// The next whole request, and the stream it came on. None: the client has ended.
    ///
    /// # Errors
    /// If the client ends in the middle of a frame, or breaks a rule.
    pub fn next_request(&mut self) -> io::Result<Option<(u32, Message)>> {
        let stream = self.next_where(|came| came.ended && !std::mem::replace(&mut came.seen_whole, true))?;
        Ok(stream.map(|stream| (stream, self.stream(stream).message.clone())))
    }

    /// A whole request that has come already.
    pub fn waiting_request(&mut self) -> Option<(u32, Message)> {
        let waits = |came: &mut Came| came.ended && !std::mem::replace(&mut came.seen_whole, true);
        let stream = self.came.iter_mut().find_map(|(stream, came)| waits(came).then_some(*stream))?;
        Some((stream, self.stream(stream).message.clone()))
    }

    /// The head of the next request, whose body may not have come yet, and the stream it came on. None: the client has
    /// ended.
    ///
    /// # Errors
    /// If the client ends in the middle of a frame, or breaks a rule.
    pub fn next_head(&mut self) -> io::Result<Option<(u32, Head)>> {
        let stream = self.next_where(|came| came.has_head && !std::mem::replace(&mut came.seen_head, true))?;
        Ok(stream.map(|stream| (stream, self.stream(stream).message.head.clone())))
    }

    /// Reads until a stream is one that is looked for.
    fn next_where(&mut self, mut fits: impl FnMut(&mut Came) -> bool) -> io::Result<Option<u32>> {
        loop {
            let found = self.came.iter_mut().find_map(|(stream, came)| fits(came).then_some(*stream));
            if found.is_some() {
                return Ok(found);
            }
            match self.frame()? {
                Some(frame) => self.digest(&frame)?,
                None => return Ok(None),
            }
        }
    }
}

/// What a service answers that shows what it was asked: method, path, and the number of bytes.
pub fn shown(request: &Message) -> Outgoing {
    let (method, path) = request.head.request();
    Outgoing::ok(format!("{method} {path} {}", request.body.len()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::certificates::Authority;
    use crate::http2::{Ended, Ends, Frame, code, setting};
    use crate::tls::client_config_offering;

    fn echo(request: &Message) -> Outgoing {
        Outgoing { trailers: request.trailers.clone(), ..Outgoing::status(200).body(request.body.clone()) }
    }

    #[test]
    fn client_and_service_agree_about_bodies_larger_than_their_windows_and_trailers() {
        let svid = Authority::new("mesh.test").svid("app");
        let (plain, behind_tls) = (service(echo), tls_service(&svid, echo));
        let config = client_config_offering(Some(&svid), &[b"h2"]);
        for (service, client) in [
            (&plain, Connection::connect(plain.address())),
            (&behind_tls, Connection::connect_tls(behind_tls.address(), &config).unwrap()),
        ] {
            let mut client = client;
            for bytes in [0, 1, 65_535, 65_536, 300_000] {
                let request = Outgoing::post("app", "/echo", vec![b'x'; bytes]).trailer("x-end", "yes");
                let answer = client.exchange(&request);
                assert_eq!((answer.status(), answer.body.len()), (200, bytes));
                assert_eq!(answer.trailers, request.trailers);
                assert_eq!(service.last().head.request(), ("POST", "/echo"));
            }
            client.ping().unwrap();
            assert_eq!(service.requests().len(), 5);
        }
    }

    #[test]
    fn a_large_head_takes_several_frames_and_a_small_window_several_grants() {
        let long = "x".repeat(40_000);
        let told = long.clone();
        let service = service(move |_| Outgoing::ok("y".repeat(1_000)).with("x-long", &told));
        let mut client = Connection::connect_with(service.address(), &[(setting::INITIAL_WINDOW_SIZE, 10)]);
        let answer = client.get("app", "/");
        assert_eq!(answer.field("x-long"), Some(long.as_str()));
        assert_eq!(answer.body.len(), 1_000);
        assert!(client.stream(1).data_frames >= 100);
    }

    #[test]
    fn resets_goodbyes_and_ends_are_told_apart() {
        let service = conversing(&[], |talk| {
            while let Some((stream, request)) = talk.next_request()? {
                match request.head.request().1 {
                    "/reset" => talk.reset(stream, code::REFUSED_STREAM)?,
                    "/bye" => talk.send(&Frame::go_away(stream - 2, code::NO_ERROR))?,
                    _ => return Ok(()),
                }
            }
            Ok(())
        });
        let mut client = Connection::connect(service.address());
        for (path, ended) in [("/reset", Ended::Reset(code::REFUSED_STREAM)), ("/bye", Ended::GoAway(code::NO_ERROR))] {
            let stream = client.request(&Outgoing::get("app", path));
            assert_eq!(client.ended(stream).unwrap(), ended);
        }
        let mut client = Connection::connect(service.address());
        let stream = client.request(&Outgoing::get("app", "/end"));
        assert_eq!(client.ended(stream).unwrap(), Ended::Closed);
    }

    #[test]
    fn a_client_that_breaks_a_rule_is_noticed() {
        let (told, heard) = mpsc::channel();
        let service = conversing(&[], move |talk| {
            let error = talk.next_request().expect_err("the rule was broken");
            told.send(error.to_string()).map_err(io::Error::other)
        });
        for (fields, said) in [
            (&[("a", "b"), (":path", "/")][..], "section 8"),
            (&[(":method", "GET"), ("content-length", "5")], "content-length"),
        ] {
            let mut client = Connection::connect(service.address());
            let stream = client.open(fields, Ends::No);
            client.send_data(stream, b"1234", Ends::Yes).unwrap();
            client.until_end().unwrap();
            let heard = heard.recv_timeout(DEADLINE).unwrap();
            assert!(heard.contains(said), "{heard}");
        }
    }
}
