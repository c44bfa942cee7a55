//! What a certificate says, as far as a mesh cares.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// What an X.509 certificate says; copied out of its DER form.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Its URI subject alternative names, in order. An SVID has exactly one.
    pub uris: Vec<String>,
    /// Its DNS subject alternative names, in lower case.
    pub names: Vec<String>,
    /// Distinguished name of its holder; may be empty.
    pub subject: String,
    /// Distinguished name of who signed it.
    pub issuer: String,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// It counts from then on.
    pub not_before: Date,
    /// It counts until then.
    pub not_after: Date,
    /// Whether it may sign other certificates.
    pub kind: Kind,
    /// What its key may be used for.
    pub usage: Usage,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It signs other certificates.
    Authority,
    /// It names a workload.
    Leaf,
}

/// What a certificate's key may be used for. Without the extension that limits a use, all of it is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Sign handshakes.
    pub digital_signature: bool,
    /// Sign certificates or revocation lists.
    pub sign_certificates: bool,
    /// Be a TLS server.
    pub server: bool,
    /// Be a TLS client.
    pub client: bool,
}

impl Certificate {
    /// Reads one DER certificate.
    ///
    /// # Errors
    /// If it is not an X.509 certificate, carries an extension twice, or bytes follow it.
    pub fn parse(der: &[u8]) -> Result<Self, X509Error> {
        let (rest, x509) = X509Certificate::from_der(der).map_err(|error| match error {
            x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error) => error,
            x509_parser::nom::Err::Incomplete(_) => X509Error::InvalidCertificate,
        })?;
        if !rest.is_empty() {
            return Err(X509Error::InvalidCertificate);
        }
        let (mut uris, mut names) = (Vec::new(), Vec::new());
        for name in x509.subject_alternative_name()?.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                _ => {}
            }
        }
        let authority = x509.basic_constraints()?.is_some_and(|constraints| constraints.value.ca);
        Ok(Self {
            uris,
            names,
            subject: x509.subject().to_string(),
            issuer: x509.issuer().to_string(),
            serial: x509.raw_serial_as_string(),
            not_before: Date(x509.validity().not_before.timestamp()),
            not_after: Date(x509.validity().not_after.timestamp()),
            kind: if authority { Kind::Authority } else { Kind::Leaf },
            usage: Usage::read(
                x509.key_usage()?.map(|extension| extension.value),
                x509.extended_key_usage()?.map(|extension| extension.value),
            ),
        })
    }
}

impl Usage {
    fn read(key: Option<&KeyUsage>, extended: Option<&ExtendedKeyUsage<'_>>) -> Self {
        Self {
            digital_signature: key.is_none_or(KeyUsage::digital_signature),
            sign_certificates: key.is_some_and(|key| key.key_cert_sign() || key.crl_sign()),
            server: extended.is_none_or(|extended| extended.any || extended.server_auth),
            client: extended.is_none_or(|extended| extended.any || extended.client_auth),
        }
    }
}

/// A moment of a certificate, in seconds since the Unix epoch. Shown as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(pub i64);

impl Date {
    /// The present.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Date {
    fn from(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self(i64::try_from(seconds).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(time) = ASN1Time::from_timestamp(self.0) else {
            return write!(f, "{} s after 1970", self.0);
        };
        let time = time.to_datetime();
        let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_shown_as_rfc_3339() {
        assert_eq!(Date(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Date(1_772_323_199).to_string(), "2026-02-28T23:59:59Z");
        assert_eq!(Date(i64::MAX).to_string(), "9223372036854775807 s after 1970");
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        assert!(Certificate::parse(b"").is_err());
        assert!(Certificate::parse(b"\x30\x03\x02\x01\x05").is_err());
    }
}
