//! What HTTP/2 runs over: a socket, or TLS on one.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustls::{ClientConnection, ServerConnection, StreamOwned};

/// A stream that ends in a socket.
pub trait Transport: Read + Write + Send {
    /// The socket.
    fn socket(&self) -> &TcpStream;

    /// What was chosen by ALPN.
    fn protocol(&self) -> Option<&[u8]>;
}

impl Transport for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }

    fn protocol(&self) -> Option<&[u8]> {
        None
    }
}

impl Transport for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }

    fn protocol(&self) -> Option<&[u8]> {
        self.conn.alpn_protocol()
    }
}

impl Transport for StreamOwned<ServerConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }

    fn protocol(&self) -> Option<&[u8]> {
        self.conn.alpn_protocol()
    }
}
