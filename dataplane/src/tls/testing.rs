//! SVIDs for tests: a root and an intermediate as `ringmesh ca` makes them, and leaves with any fault.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use ringmesh_model::snapshot::Identity;
use ringmesh_ring::{Buffer, Error, Idle, Output, Pipe, Stop, Stream};

/// A root with an intermediate below it.
pub(crate) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::whose_intermediate_ends_in(4000)
    }

    pub(crate) fn whose_intermediate_ends_in(year: i32) -> Self {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(ca("root"), key()).unwrap();
        let mut params = ca("intermediate");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let intermediate = CertifiedIssuer::signed_by(params, key(), &root).unwrap();
        Self { root, intermediate }
    }

    /// Another certificate of the same root.
    pub(crate) fn renewed_root(&self) -> Vec<u8> {
        let mut params = ca("root");
        params.not_after = rcgen::date_time_ymd(3999, 1, 1);
        params.self_signed(self.root.key()).unwrap().der().to_vec()
    }

    /// A sound SVID.
    pub(crate) fn svid(&self, id: &str) -> Identity {
        self.issue(id, |_| {})
    }

    /// An SVID with what `edit` does to it. It says `id` to its own side in any case.
    pub(crate) fn issue(&self, id: &str, edit: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut certificate = CertificateParams::default();
        certificate.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        certificate.is_ca = IsCa::ExplicitNoCa;
        certificate.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        certificate.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        edit(&mut certificate);
        let key = KeyPair::generate().unwrap();
        let leaf = certificate.signed_by(&key, &self.intermediate).unwrap();
        Identity {
            id: id.parse().unwrap(),
            chain: vec![leaf.der().to_vec(), self.intermediate.der().to_vec()],
            key: key.serialize_der(),
            bundle: vec![self.root.der().to_vec()],
            expires: u64::MAX,
        }
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Ends the validity of a certificate long ago.
pub(crate) fn expire(certificate: &mut CertificateParams) {
    certificate.not_before = rcgen::date_time_ymd(2020, 1, 1);
    certificate.not_after = rcgen::date_time_ymd(2021, 1, 1);
}

/// Two futures, both to their end.
pub(crate) async fn join<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut one, mut other) = (None, None);
    poll_fn(move |context| {
        if one.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(context)
        {
            one = Some(output);
        }
        if other.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(context)
        {
            other = Some(output);
        }
        match (one.take(), other.take()) {
            (Some(one), Some(other)) => Poll::Ready((one, other)),
            (first, second) => {
                (one, other) = (first, second);
                Poll::Pending
            }
        }
    })
    .await
}

/// A stream that remembers every send, as the network would see it.
pub(crate) struct Tap<S> {
    inner: S,
    pub(crate) sends: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl<S> Tap<S> {
    pub(crate) fn on(inner: S) -> Self {
        Self { inner, sends: Rc::default() }
    }
}

impl<S: Stream> Stream for Tap<S> {
    async fn readable(&self) -> io::Result<()> {
        self.inner.readable().await
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        self.inner.try_fill(buffer)
    }

    fn check_idle(&self) -> io::Result<Idle> {
        self.inner.check_idle()
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        self.inner.fill(buffer, stop).await
    }

    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        if !output.is_empty() {
            self.sends.borrow_mut().push(output.slices().flatten().copied().collect());
        }
        self.inner.flush(output, stop).await
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.inner.shutdown_write()
    }

    fn reset_on_close(&self) {
        self.inner.reset_on_close();
    }

    async fn splice_telling(
        &self,
        to: &Self,
        pipe: &mut Pipe,
        max: usize,
        stop: &Stop,
        waiting: impl FnMut(usize),
    ) -> Result<usize, Error> {
        self.inner.splice_telling(&to.inner, pipe, max, stop, waiting).await
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        self.inner.peer_address()
    }
}
