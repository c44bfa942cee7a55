//! Why something is no header.

/// Why something is no header. Side: the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It begins like neither version.
    #[error("it does not begin with a PROXY header")]
    NoHeader,
    /// Version 1: no CRLF within the longest line there can be.
    #[error("the line is longer than 107 bytes")]
    LongLine,
    /// Version 1: another line end than CRLF, or a CR within the line.
    #[error("the line does not end with CRLF")]
    LineEnd,
    /// Version 1: neither `TCP4`, `TCP6` nor `UNKNOWN`.
    #[error("the protocol is neither TCP4, TCP6 nor UNKNOWN")]
    Protocol,
    /// Version 1: not two addresses and two ports with one space before each.
    #[error("the line has not just two addresses and two ports, each after one space")]
    Parts,
    /// Version 1: no address of the family that the line names.
    #[error("an address is not one of the family that the line names")]
    Address,
    /// Version 1: no port.
    #[error("a port is not a number of 0 to 65535 without leading zeros")]
    Port,
    /// Version 2: another version.
    #[error("the binary header's version is {0}, not 2")]
    Version(u8),
    /// Version 2: neither `LOCAL` nor `PROXY`.
    #[error("the command is {0:#x}, neither LOCAL nor PROXY")]
    Command(u8),
    /// Version 2: a family and transport that the format does not have.
    #[error("the address family is {0:#04x}, which is none")]
    Family(u8),
    /// Version 2: longer than we take.
    #[error("the header has {0} bytes; at most 4096 are taken")]
    TooLong(usize),
    /// Version 2: no room for the addresses of its family.
    #[error("the length leaves no room for the addresses")]
    NoRoom,
    /// Version 2: a TLV, or one within it, is longer than what is left of its container.
    #[error("TLV {0:#04x} is longer than what holds it")]
    Overrun(u8),
    /// Version 2: bytes behind the last TLV that are too few for another.
    #[error("bytes are left behind the last TLV")]
    Rest,
    /// Version 2: a TLV that may be there once is there again.
    #[error("TLV {0:#04x} is there twice")]
    Twice(u8),
    /// Version 2: a TLV is not what its type says.
    #[error("TLV {0:#04x} is not as its type demands")]
    Tlv(u8),
    /// Version 2: the checksum is that of other bytes.
    #[error("the CRC32C does not match")]
    Checksum,
}
