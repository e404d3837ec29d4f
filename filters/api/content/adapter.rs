//! Codings as bodies around a body. The codecs are the well-known ones, driven by `async-compression`; what stands here
//! is the seam: frames in and out, trailers past the codec, work per poll, limits.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_compression::Level;
use async_compression::brotli::EncoderParams;
use async_compression::tokio::bufread::{
    BrotliDecoder, BrotliEncoder, GzipDecoder, GzipEncoder, ZlibDecoder, ZlibEncoder, ZstdDecoder, ZstdEncoder,
};
use async_compression::zstd::{CParameter, DParameter};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use super::Coding;
use crate::contract::{Body, BodyError, Fault, Reason};

/// Largest chunk that one poll gives.
const CHUNK: usize = 16 << 10;
/// Most input that one poll works on, so that one body does not hold a worker: some milliseconds at the usual levels.
const WORK: usize = 128 << 10;
/// zstd's window for a content coding is 8 MiB at most (RFC 9659), which is 2^23.
const ZSTD_WINDOW: u32 = 23;
/// Window of what we encode: 2^19 bytes, because each answer under way owns one.
const OUR_WINDOW: u32 = 19;
/// What any body may come to before its ratio is looked at: a short text of zeros is no bomb.
const RATIO_FROM: u64 = 1 << 20;

/// How far a body may be decoded, and what it is called when it goes further or is no such coding.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes decoded.
    pub size: u64,
    /// Bytes decoded per byte read.
    pub ratio: u64,
    /// Too much of either.
    pub over: Reason,
    /// Not what the coding says.
    pub broken: Reason,
    /// The filter.
    pub by: &'static str,
}

/// The body decoded.
pub fn decode(body: Body, coding: Coding, limits: Limits) -> Body {
    let source = Source::new(body);
    let codec: Box<dyn Codec> = match coding {
        Coding::Gzip => {
            let mut decoder = GzipDecoder::new(source);
            // RFC 1952 section 2.2: members follow each other.
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Coding::Deflate => Box::new(ZlibDecoder::new(source)),
        Coding::Brotli => Box::new(BrotliDecoder::new(source)),
        Coding::Zstd => {
            let mut decoder = ZstdDecoder::with_params(source, &[DParameter::window_log_max(ZSTD_WINDOW)]);
            // RFC 8878 section 3: frames follow each other.
            decoder.multiple_members(true);
            Box::new(decoder)
        }
    };
    Body::stream(Coded::new(codec, Some(limits)))
}

/// The body encoded. What the source has given is flushed whenever it makes the reader wait.
pub fn encode(body: Body, coding: Coding, level: i32) -> Body {
    let source = Source::new(body);
    let level = Level::Precise(level);
    let codec: Box<dyn Codec> = match coding {
        Coding::Gzip => Box::new(GzipEncoder::with_quality(source, level)),
        Coding::Deflate => Box::new(ZlibEncoder::with_quality(source, level)),
        Coding::Brotli => {
            #[expect(clippy::cast_possible_wrap, reason = "a small constant")]
            let params = EncoderParams::default().quality(level).window_size(OUR_WINDOW as i32);
            Box::new(BrotliEncoder::with_params(source, params))
        }
        Coding::Zstd => {
            Box::new(ZstdEncoder::with_quality_and_params(source, level, &[CParameter::window_log(OUR_WINDOW)]))
        }
    };
    Body::stream(Coded::new(codec, None))
}

/// A codec with its source still in reach.
trait Codec: AsyncRead + Send + Unpin {
    fn source(&mut self) -> &mut Source;
}

macro_rules! codecs {
    ($($codec:ident)*) => {
        $(impl Codec for $codec<Source> {
            fn source(&mut self) -> &mut Source {
                self.get_mut()
            }
        })*
    };
}
codecs! { GzipEncoder GzipDecoder ZlibEncoder ZlibDecoder BrotliEncoder BrotliDecoder ZstdEncoder ZstdDecoder }

/// Frames as bytes to read; trailers and faults are set aside.
struct Source {
    body: Body,
    chunk: Bytes,
    trailers: Option<HeaderMap>,
    fault: Option<BodyError>,
    /// Bytes taken so far.
    taken: u64,
    /// What this poll may still take.
    allowance: usize,
}

impl Source {
    const fn new(body: Body) -> Self {
        Self { body, chunk: Bytes::new(), trailers: None, fault: None, taken: 0, allowance: 0 }
    }
}

impl AsyncBufRead for Source {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.allowance == 0 {
            // Others get their turn. The codec takes it for a pause and flushes, every 128 KiB at most.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while this.chunk.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => {
                    this.body = Body::Empty;
                    break;
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.chunk = data,
                    Err(frame) => this.trailers = frame.into_trailers().ok(),
                },
                Some(Err(fault)) => {
                    this.body = Body::Empty;
                    this.fault = Some(fault);
                    return Poll::Ready(Err(io::Error::other("the body broke off")));
                }
            }
        }
        let now = this.chunk.len().min(this.allowance);
        Poll::Ready(Ok(&this.chunk[..now]))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.chunk.advance(amount);
        this.allowance -= amount;
        this.taken += amount as u64;
    }
}

impl AsyncRead for Source {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let taken = bytes.len().min(out.remaining());
        out.put_slice(&bytes[..taken]);
        self.consume(taken);
        Poll::Ready(Ok(()))
    }
}

/// What a codec makes of a body, as a body.
struct Coded {
    codec: Option<Box<dyn Codec>>,
    limits: Option<Limits>,
    made: u64,
    /// Where the codec writes; what it wrote is copied out at its true size.
    scratch: Box<[u8]>,
}

impl Coded {
    fn new(codec: Box<dyn Codec>, limits: Option<Limits>) -> Self {
        Self { codec: Some(codec), limits, made: 0, scratch: vec![0; CHUNK].into() }
    }

    /// The fault behind an error of the codec.
    fn broken(&mut self) -> BodyError {
        let set_aside = self.codec.as_mut().and_then(|codec| codec.source().fault.take());
        let limits = self.limits;
        set_aside.unwrap_or_else(|| {
            Box::new(match limits {
                Some(limits) => {
                    Fault::new(limits.broken).detail("the content is not what its coding says").by(limits.by)
                }
                None => Fault::new(Reason::Internal).detail("a content could not be encoded"),
            })
        })
    }
}

impl HttpBody for Coded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(codec) = &mut this.codec else { return Poll::Ready(None) };
        codec.source().allowance = WORK;
        let mut out = ReadBuf::new(&mut this.scratch);
        let read = ready!(Pin::new(&mut **codec).poll_read(cx, &mut out));
        let made = out.filled().len();
        if made > 0 && read.is_ok() {
            this.made += made as u64;
            if let Some(limits) = this.limits
                && (this.made > limits.size
                    || this.made > RATIO_FROM.max(limits.ratio.saturating_mul(codec.source().taken)))
            {
                this.codec = None;
                let fault = Fault::new(limits.over).detail("the decoded content is too large").by(limits.by);
                return Poll::Ready(Some(Err(Box::new(fault))));
            }
            return Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&this.scratch[..made])))));
        }
        // The end of the coding has to be the end of the body: bytes behind it would be another reader's.
        let rest = match read {
            Ok(()) => ready!(Pin::new(codec.source()).poll_fill_buf(cx)).map(<[u8]>::len),
            Err(e) => Err(e),
        };
        let ended = match rest {
            Ok(0) => Ok(codec.source().trailers.take()),
            Ok(_) | Err(_) => Err(this.broken()),
        };
        this.codec = None;
        Poll::Ready(match ended {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(fault) => Some(Err(fault)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.codec.is_none()
    }
}
