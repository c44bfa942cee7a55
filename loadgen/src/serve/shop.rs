//! One of the demo's services: it names itself and its version, and asks other services first if it has to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ringmesh_ring::net::{Address, Net, Sockets};
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;
use ringmesh_ring::{Buffer, Output};
use serde_json::Value;

use super::http::{Next, requests};
use super::{Delay, Shared};
use crate::limits::MAX_NESTED_ANSWER_BYTES;
use crate::load::{Connection, Entry, Prepared, Reuse};
use crate::message::{Body, Fault, Method, RequestHead, read_body};
use crate::report::Failure;

/// The response field that lists who had a part in an answer, such as `web/v1, checkout/v1, payments/v2`.
pub const SERVED_BY: &str = "x-served-by";

/// How long a nested call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Most unused connections kept to one address.
const MAX_IDLE: usize = 64;

/// A service of the shop.
#[derive(Clone, Debug)]
pub struct Shop {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whom it asks before it answers, in order.
    pub calls: Vec<Call>,
    /// How long its own work takes.
    pub delay: Delay,
}

/// A call to another service.
#[derive(Clone, Debug)]
pub struct Call {
    /// The service: value of the Host field.
    pub service: String,
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// Where to connect: the outbound port of the own sidecar.
    pub via: SocketAddr,
}

/// Kept connections to other services.
#[derive(Default)]
pub(super) struct Pool {
    idle: RefCell<BTreeMap<SocketAddr, Vec<Connection<<Sockets as Net>::Stream>>>>,
}

impl Pool {
    /// An open connection, if there is one.
    fn take(&self, address: SocketAddr) -> Option<Connection<<Sockets as Net>::Stream>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&address)?;
        while let Some(connection) = connections.pop() {
            if connection.is_open() {
                return Some(connection);
            }
        }
        None
    }

    fn give(&self, address: SocketAddr, connection: Connection<<Sockets as Net>::Stream>) {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(address).or_default();
        if connections.len() < MAX_IDLE {
            connections.push(connection);
        }
    }
}

/// What another service answered.
struct Nested {
    status: u16,
    served_by: String,
    /// JSON, whatever came.
    body: String,
}

/// What a service answers.
struct Own {
    status: u16,
    /// Who had a part in it.
    served_by: String,
    /// JSON.
    body: String,
}

/// Serves one connection to its end.
pub(super) async fn serve<S: Stream>(shared: &Shared, shop: &Shop, stream: &S, stop: &Stop) {
    requests(
        shared,
        stream,
        Buffer::hollow(),
        stop,
        async |head: RequestHead, buffer: &mut Buffer, output: &mut Output| {
            let mut body = Body::new(head.framing);
            read_body(stream, buffer, &mut body, stop, |_| {}).await?;
            let delay = shared.draw(shop.delay);
            if !delay.is_zero() {
                shared.wait(stream, stop, delay).await?;
            }
            let next = if head.persistent { Next::Keep } else { Next::Close };
            write(&answer(shared, shop).await, head.method, next, output);
            stream.flush(output, stop).await?;
            Ok::<_, Fault>(next)
        },
    )
    .await;
}

/// Asks whom it has to, and says what came of it.
async fn answer(shared: &Shared, shop: &Shop) -> Own {
    let mut status = 200;
    let mut served_by = format!("{}/{}", shop.name, shop.version);
    let mut called = Vec::new();
    for call in &shop.calls {
        let service = quoted(&call.service);
        match ask(shared, call).await {
            Ok(nested) => {
                if nested.status != 200 {
                    status = 502;
                }
                if !nested.served_by.is_empty() {
                    served_by = format!("{served_by}, {}", nested.served_by);
                }
                called.push(format!(r#"{{"service":{service},"status":{},"answer":{}}}"#, nested.status, nested.body));
            }
            Err(failure) => {
                status = 502;
                called.push(format!(r#"{{"service":{service},"error":"{}"}}"#, failure.label()));
            }
        }
    }
    // Written out, so that people who read it meet the name first.
    let (name, version) = (quoted(&shop.name), quoted(&shop.version));
    let called = if called.is_empty() { String::new() } else { format!(r#","called":[{}]"#, called.join(",")) };
    Own { status, served_by, body: format!(r#"{{"service":{name},"version":{version}{called}}}"#) }
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// One call to another service.
async fn ask(shared: &Shared, call: &Call) -> Result<Nested, Failure> {
    let entry = Entry { method: call.method.clone(), ..Entry::get(&call.service, &call.path) };
    let request = Prepared::new(&entry, Reuse::KeepAlive);
    // A stop of its own: the client's may be ended by an operation on the client's stream.
    let stop = shared.net.stop();
    stop.set_deadline(Some(shared.net.now() + CALL_TIMEOUT));
    let connection = match shared.calls.take(call.via) {
        Some(connection) => connection,
        None => Connection::open(&shared.net, &Address::Ip(call.via), &stop).await?,
    };
    let mut body = Vec::new();
    let sink = |bytes: &[u8]| {
        if body.len() + bytes.len() <= MAX_NESTED_ANSWER_BYTES {
            body.extend_from_slice(bytes);
        }
    };
    let answer = connection.exchange(&request, Some(SERVED_BY), &mut Output::new(), &stop, sink).await?;
    if answer.persistent {
        shared.calls.give(call.via, connection);
    }
    // A refusal of the mesh is text, not JSON.
    let text = String::from_utf8_lossy(&body);
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
    let body = if is_json { text.trim().to_owned() } else { quoted(text.trim()) };
    Ok(Nested { status: answer.status, served_by: answer.field.unwrap_or_default(), body })
}

fn write(own: &Own, asked: Method, next: Next, output: &mut Output) {
    let reason = if own.status == 200 { "OK" } else { "Bad Gateway" };
    let close = if next == Next::Close { "connection: close\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\n{SERVED_BY}: {}\r\n\
         content-length: {}\r\n{close}\r\n",
        own.status,
        own.served_by,
        own.body.len() + 1,
    );
    output.push_bytes(head.as_bytes());
    if asked != Method::Head {
        output.push_bytes(own.body.as_bytes());
        output.push_bytes(b"\n");
    }
}
