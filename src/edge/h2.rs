//! HTTP/2.
use super::conn::Setup;
use super::drain_signal::DrainSignal;
use super::serve::Serve;
use super::stream::Stream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub async fn run<S: Serve>(io: Stream, setup: Setup<S>, drain: DrainSignal) {
    let _ = (io, setup, drain);
}
