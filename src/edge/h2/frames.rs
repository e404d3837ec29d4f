//! Walks the 9-byte heads of arriving HTTP/2 frames (RFC 9113 section 4.1) and counts what h2 bounds in memory but not
//! in time. Pure: it sees bytes and is told the time.

use std::time::Duration;

use onehop_filters::contract::Moment;

/// The client's connection preface (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is counted is counted per window.
const WINDOW: Duration = Duration::from_secs(10);
/// Resets (CVE-2023-44487) and exchanges ended by the client before us, when they are also more than half of all.
const RESETS: u64 = 100;
/// DATA without content and without the end of its stream.
const EMPTY: u64 = 100;
const SETTINGS: u64 = 100;
/// Unknown types: greasing is legal, floods are not.
const UNKNOWN: u64 = 1000;
/// PING, PRIORITY and WINDOW_UPDATE get an allowance and then a share of the work that explains them: bandwidth probes
/// follow our bytes, window updates too, priorities follow requests.
const PINGS: u64 = 500;
const PRIORITIES: u64 = 200;
const UPDATES: u64 = 1000;
const BYTES_PER_PING: u64 = 4096;
const BYTES_PER_UPDATE: u64 = 256;
const PER_REQUEST: u64 = 10;

/// The counts of a connection.
#[derive(Debug, Default)]
pub struct Frames {
    preface: usize,
    head: [u8; 9],
    have: usize,
    payload: usize,
    open: Option<u64>,
    /// The frame being read is the last of its header block.
    ends_block: bool,
    blocks: u64,
    since: Moment,
    base: Work,
    count: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    empty: u64,
    headers: u64,
    priorities: u64,
    resets: u64,
    settings: u64,
    pings: u64,
    updates: u64,
    unknown: u64,
}

/// What the connection has done in its life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Requests served.
    pub served: u64,
    /// Of these, ended by the client (or by its protocol errors) before we were done.
    pub premature: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

impl Frames {
    /// Counts what arrived.
    pub fn watch(&mut self, mut bytes: &[u8]) {
        let preface = (PREFACE.len() - self.preface).min(bytes.len());
        self.preface += preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.payload > 0 {
                let n = self.payload.min(bytes.len());
                self.payload -= n;
                bytes = &bytes[n..];
                self.close_block();
                continue;
            }
            let n = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == self.head.len() {
                self.have = 0;
                self.frame();
                self.close_block();
            }
        }
    }

    /// A block is open until its last byte: a frame may say that it ends the block and not arrive.
    fn close_block(&mut self) {
        if self.payload == 0 && self.ends_block {
            self.open = None;
        }
    }

    fn frame(&mut self) {
        const END_STREAM: u8 = 0x1;
        const END_HEADERS: u8 = 0x4;
        let [a, b, c, kind, flags, ..] = self.head;
        self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.ends_block = matches!(kind, 0x1 | 0x9) && flags & END_HEADERS != 0;
        let count = &mut self.count;
        match kind {
            0x0 => count.empty += u64::from(self.payload == 0 && flags & END_STREAM == 0),
            0x1 => {
                count.headers += 1;
                self.blocks += 1;
                self.open = Some(self.blocks);
            }
            0x2 => count.priorities += 1,
            0x3 => count.resets += 1,
            0x4 => count.settings += 1,
            0x6 => count.pings += 1,
            0x8 => count.updates += 1,
            0x9 => {}
            _ => count.unknown += 1,
        }
    }

    /// Whether the preface is complete.
    #[must_use]
    pub fn greeted(&self) -> bool {
        self.preface == PREFACE.len()
    }

    /// Number of the header block that has begun and not ended.
    #[must_use]
    pub fn open_block(&self) -> Option<u64> {
        self.open
    }

    /// Whether the client asks for more than it can need.
    pub fn judge(&mut self, now: Moment, work: Work) -> Option<&'static str> {
        if now.since(self.since) > WINDOW {
            (self.since, self.base, self.count) = (now, work, Counts::default());
        }
        let count = &self.count;
        let sent = work.bytes_out - self.base.bytes_out;
        let premature = work.premature - self.base.premature;
        let served = work.served - self.base.served;
        let asked = PER_REQUEST * count.headers;
        let over = [
            (count.resets > RESETS && 2 * count.resets > count.headers, "rapid-reset"),
            (premature > RESETS && 2 * premature > served, "rapid-reset"),
            (count.empty > EMPTY, "empty-data-flood"),
            (count.settings > SETTINGS, "settings-flood"),
            (count.unknown > UNKNOWN, "frame-flood"),
            (count.pings > PINGS + sent / BYTES_PER_PING, "ping-flood"),
            (count.priorities > PRIORITIES + asked, "priority-flood"),
            (count.updates > UPDATES + asked + sent / BYTES_PER_UPDATE, "window-flood"),
        ];
        over.iter().find_map(|&(over, why)| over.then_some(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).expect("small"), kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    fn watched(bytes: &[u8]) -> Frames {
        let mut frames = Frames::default();
        frames.watch(PREFACE);
        frames.watch(bytes);
        frames
    }

    const SOON: Moment = Moment(1);

    #[test]
    fn floods_are_told_from_work() {
        for (kind, flags, n, why) in [
            (0x0, 0, EMPTY, "empty-data-flood"),
            (0x2, 0, PRIORITIES, "priority-flood"),
            (0x3, 0, RESETS, "rapid-reset"),
            (0x4, 1, SETTINGS, "settings-flood"),
            (0x6, 0, PINGS, "ping-flood"),
            (0x8, 0, UPDATES, "window-flood"),
            (0xb, 0, UNKNOWN, "frame-flood"),
        ] {
            let n = usize::try_from(n).expect("small");
            assert_eq!(watched(&frame(kind, flags, &[]).repeat(n)).judge(SOON, Work::default()), None, "{why}");
            let mut over = watched(&frame(kind, flags, &[]).repeat(n + 1));
            assert_eq!(over.judge(SOON, Work::default()), Some(why));
            assert_eq!(over.judge(SOON + 2 * WINDOW, Work::default()), None, "a new window forgets {why}");
        }
    }

    #[test]
    fn resets_among_many_requests_are_normal() {
        let exchange = [frame(0x1, 0x5, &[]), frame(0x1, 0x5, &[]), frame(0x3, 0, &[0; 4])].concat();
        assert_eq!(watched(&exchange.repeat(500)).judge(SOON, Work::default()), None);
        let work = Work { served: 300, premature: 151, bytes_out: 0 };
        assert_eq!(watched(&[]).judge(SOON, work), Some("rapid-reset"));
        assert_eq!(watched(&[]).judge(SOON, Work { served: 303, ..work }), None);
    }

    #[test]
    fn an_open_block_is_seen_until_its_end() {
        let mut frames = watched(&frame(0x1, 0x1, b"abc"));
        assert_eq!(frames.open_block(), Some(1));
        frames.watch(&frame(0x9, 0, b"abc"));
        assert_eq!(frames.open_block(), Some(1));
        frames.watch(&frame(0x9, 0x4, b"abc"));
        assert_eq!(frames.open_block(), None);
        let whole = frame(0x1, 0x5, b"abc");
        frames.watch(&whole[..11]);
        assert_eq!(frames.open_block(), Some(2), "a frame that has begun is no block that has ended");
        frames.watch(&whole[11..]);
        assert_eq!(frames.open_block(), None);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(kinds in prop::collection::vec((0u8..12, any::<u8>(), 0usize..20), 0..20), cut in 0usize..400) {
            let mut bytes = PREFACE.to_vec();
            for (kind, flags, n) in kinds {
                bytes.extend(frame(kind, flags, &vec![7; n]));
            }
            let cut = cut.min(bytes.len());
            let (mut whole, mut pieces) = (Frames::default(), Frames::default());
            whole.watch(&bytes);
            pieces.watch(&bytes[..cut]);
            pieces.watch(&bytes[cut..]);
            prop_assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
        }
    }
}
