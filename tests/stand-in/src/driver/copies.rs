//! Copies from pinned memory, which are made as late as a device may make them: when their stream is
//! given other work or is waited for, or an event behind them is. Until then their place counts as
//! not written, and the host's memory is read when they are made.

use std::collections::HashMap;

use super::state::State;
use super::status::*;

/// A copy that is asked for and not made.
#[derive(Debug)]
struct Copy {
    /// Copies are numbered from 1 in the order in which they were asked for.
    number: u64,
    stream: usize,
    to: u64,
    from: usize,
    bytes: usize,
}

/// What is pinned, asked for, and recorded.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Pinned memory of the host: where it begins, and its length.
    pinned: Vec<(usize, usize)>,
    pending: Vec<Copy>,
    asked: u64,
    /// Events, by handle: the stream, and the last copy that had been asked for.
    events: HashMap<usize, (usize, u64)>,
}

impl State {
    pub fn pin(&mut self, from: usize, bytes: usize) {
        self.copies.pinned.push((from, bytes));
    }

    pub fn unpin(&mut self, from: usize) {
        self.copies.pinned.retain(|&(at, _)| at != from);
    }

    /// Takes a copy on, where the host's memory is pinned. Nothing where it is not: such memory is
    /// read before the call returns.
    pub fn defer(&mut self, stream: usize, to: u64, from: usize, bytes: usize) -> Option<Status> {
        let holds = |&(at, len): &(usize, usize)| at <= from && from + bytes <= at + len;
        if !self.copies.pinned.iter().any(holds) {
            return None;
        }
        let done = self.memory.forget(to, bytes);
        let status = self.copied(done);
        if status == SUCCESS {
            self.copies.asked += 1;
            let number = self.copies.asked;
            self.copies.pending.push(Copy { number, stream, to, from, bytes });
        }
        Some(status)
    }

    /// Makes the copies of a stream up to one, in their order.
    fn settle_to(&mut self, stream: usize, last: u64) -> Status {
        let due = |copy: &Copy| copy.stream == stream && copy.number <= last;
        let due: Vec<Copy> = self.copies.pending.extract_if(.., |copy| due(copy)).collect();
        for copy in due {
            // SAFETY: the memory was pinned when the copy was asked for, and is not freed before
            // its copies are made.
            let from = unsafe { std::slice::from_raw_parts(copy.from as *const u8, copy.bytes) };
            let done = self.memory.write(copy.to, from);
            let status = self.copied(done);
            if status != SUCCESS {
                return status;
            }
        }
        self.alive().err().unwrap_or(SUCCESS)
    }

    /// Makes all copies of a stream.
    pub fn settle(&mut self, stream: usize) -> Status {
        self.settle_to(stream, u64::MAX)
    }

    /// Makes all copies.
    pub fn settle_all(&mut self) -> Status {
        let streams: Vec<usize> = self.copies.pending.iter().map(|copy| copy.stream).collect();
        streams.into_iter().map(|stream| self.settle(stream)).fold(SUCCESS, Status::max)
    }

    pub fn record(&mut self, event: usize, stream: usize) {
        self.copies.events.insert(event, (stream, self.copies.asked));
    }

    /// Makes the copies that an event is behind.
    pub fn settle_event(&mut self, event: usize) -> Status {
        match self.copies.events.get(&event) {
            Some(&(stream, last)) => self.settle_to(stream, last),
            None => self.alive().err().unwrap_or(SUCCESS),
        }
    }
}
