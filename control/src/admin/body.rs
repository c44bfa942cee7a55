//! A page that is written on a thread of its own while it is sent. With ten thousand services `/metrics` has 40 MB, and
//! control has other things to do meanwhile on its only thread.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::sync::{Semaphore, mpsc};

use super::limits::{CHUNK_BYTES, MAX_CHUNKS_WAITING, MAX_PAGES_WRITTEN};

/// What an answer says.
pub(super) enum Body {
    /// All of it.
    Whole(Bytes),
    /// What is written of it yet, and where the rest will come from.
    Begun(Bytes, mpsc::Receiver<Piece>),
}

/// A part of a page.
pub(super) enum Piece {
    /// More follows.
    Part(Bytes),
    /// The page is complete with this.
    Last(Bytes),
}

/// Pages that are being written. Those beyond the limit wait.
static WRITTEN: Semaphore = Semaphore::const_new(MAX_PAGES_WRITTEN);

impl Body {
    /// What `write` writes. It runs on a thread that may block, and waits there for who reads slowly; when nobody reads
    /// any more, writing fails.
    ///
    /// # Errors
    /// If it fails before the first piece is full. Later, the body ends with an error, so that what was sent does not look
    /// like a whole page.
    pub(super) async fn written<W>(write: W) -> io::Result<Self>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    {
        let permit = WRITTEN.acquire().await.expect("it is never closed");
        let (pieces, mut written) = mpsc::channel(MAX_CHUNKS_WAITING);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut page = Page { pieces, text: Vec::new() };
            write(&mut page)?;
            let last = Piece::Last(page.text.into());
            page.pieces.blocking_send(last).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        });
        match written.recv().await {
            Some(Piece::Last(page)) => Ok(Self::Whole(page)),
            Some(Piece::Part(first)) => Ok(Self::Begun(first, written)),
            None => Err(incomplete()),
        }
    }
}

impl From<Bytes> for Body {
    fn from(page: Bytes) -> Self {
        Self::Whole(page)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = match &mut *self {
            Self::Whole(page) | Self::Begun(page, _) if !page.is_empty() => std::mem::take(page),
            Self::Whole(_) => return Poll::Ready(None),
            Self::Begun(_, pieces) => match ready!(pieces.poll_recv(context)) {
                Some(Piece::Part(part)) => part,
                Some(Piece::Last(last)) => {
                    *self = Self::Whole(last);
                    return self.poll_frame(context);
                }
                None => return Poll::Ready(Some(Err(incomplete()))),
            },
        };
        Poll::Ready(Some(Ok(Frame::data(next))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(page) if page.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(page) => SizeHint::with_exact(page.len() as u64),
            Self::Begun(..) => SizeHint::default(),
        }
    }
}

/// The writer has failed, or panicked.
fn incomplete() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the page could not be written to its end")
}

/// A page on its way from the thread that writes it.
struct Page {
    pieces: mpsc::Sender<Piece>,
    text: Vec<u8>,
}

impl Write for Page {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        if self.text.len() >= CHUNK_BYTES {
            let text = std::mem::take(&mut self.text);
            self.pieces.blocking_send(Piece::Part(text.into())).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;
    use std::time::Duration;

    use http_body_util::BodyExt;
    use tokio::time::timeout;

    use super::*;

    /// Far more than any wait here takes.
    const DEADLINE: Duration = Duration::from_secs(10);

    /// Runs a test on one thread, as control does.
    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(DEADLINE, test).await.expect("an end within the deadline") });
    }

    #[test]
    fn while_a_page_is_written_the_runtime_goes_on() {
        run(async {
            let (go, waits) = std_mpsc::channel();
            let body = Body::written(move |page| {
                waits.recv_timeout(DEADLINE).map_err(io::Error::other)?;
                page.write_all(b"late")
            });
            let (body, ()) = tokio::join!(body, async { go.send(()).unwrap() });
            let body = body.unwrap();
            assert_eq!(body.size_hint().exact(), Some(4), "a small page has a length");
            assert_eq!(body.collect().await.unwrap().to_bytes(), "late");
        });
    }

    #[test]
    fn a_long_page_arrives_in_order_and_is_not_written_faster_than_it_is_read() {
        run(async {
            let lines = 200_000_u32;
            let (report, written) = std_mpsc::channel();
            let body = Body::written(move |page| {
                (0..lines).try_for_each(|line| {
                    let _ = report.send(line);
                    writeln!(page, "{line}")
                })
            });
            let mut body = body.await.unwrap();
            assert_eq!(body.size_hint().exact(), None);
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            // It stops by itself, well before the end.
            let ahead = loop {
                let so_far = written.try_iter().last();
                tokio::time::sleep(Duration::from_millis(50)).await;
                if let (Some(line), Err(_)) = (so_far, written.try_recv()) {
                    break line;
                }
            };
            let longest = "199999\n".len();
            assert!(ahead as usize * longest <= (MAX_CHUNKS_WAITING + 4) * CHUNK_BYTES * 2, "{ahead} lines");
            assert!(ahead < lines - 1);
            let rest = body.collect().await.unwrap().to_bytes();
            let expected: String = (0..lines).map(|line| format!("{line}\n")).collect();
            assert!([first, rest].concat() == expected.as_bytes());
        });
    }

    #[test]
    fn a_page_that_fails_is_an_error_and_never_looks_whole() {
        run(async {
            assert!(Body::written(|_| Err(io::ErrorKind::Other.into())).await.is_err());
            assert!(Body::written(|_| panic!("on purpose")).await.is_err());
            let body = Body::written(|page| {
                page.write_all(&[b'a'; CHUNK_BYTES])?;
                panic!("on purpose, later")
            });
            let error = body.await.unwrap().collect().await.expect_err("no end");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn a_page_that_nobody_reads_any_more_is_not_written_on() {
        run(async {
            let (report, ended) = tokio::sync::oneshot::channel();
            let body = Body::written(move |page| {
                let ended = std::iter::repeat(()).try_for_each(|()| page.write_all(b"and so on "));
                let _ = report.send(ended.as_ref().map_err(io::Error::kind).copied());
                ended
            });
            drop(body.await.unwrap());
            assert_eq!(ended.await.unwrap(), Err(io::ErrorKind::BrokenPipe));
        });
    }
}
