//! Who touched which word of memory when, and whether two accesses are ordered.

/// An access to one word, in 64 bits: time, thread, which of its bytes, whether it was atomic.
#[derive(Clone, Copy)]
pub(crate) struct Stamp(u64);

impl Stamp {
    const fn new(time: u32, thread: u32, bytes: u8, atomic: bool) -> Self {
        Self((time as u64) << 32 | (thread as u64) << 8 | (bytes as u64) << 4 | atomic as u64)
    }

    const fn time(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub const fn thread(self) -> u32 {
        self.0 as u32 >> 8
    }

    const fn warp(self) -> u32 {
        self.thread() / 32
    }

    const fn bytes(self) -> u8 {
        self.0 as u8 >> 4
    }

    const fn atomic(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Time, as barriers make it pass.
///
/// It goes on over launches and blocks, so that what was touched before needs no erasing. Blocks
/// run one after the other, hence a time tells the block too.
#[derive(Debug)]
pub(crate) struct Clock {
    now: u32,
    /// When the launch began.
    launch: u32,
    /// When each of its blocks began, with the block's number.
    blocks: Vec<(u32, u32)>,
    /// When the block began.
    block: u32,
    /// When all threads of the block met last.
    met: u32,
    threads: usize,
    /// For each thread and each other, up to when it knows what that one did. Empty as long as
    /// all threads of the block meet together.
    known: Vec<u32>,
}

impl Clock {
    /// The beginning of a launch.
    pub const fn new(before: u32) -> Self {
        let now = before + 1;
        Self {
            now,
            launch: now,
            blocks: Vec::new(),
            block: now,
            met: now,
            threads: 0,
            known: Vec::new(),
        }
    }

    pub const fn now(&self) -> u32 {
        self.now
    }

    pub fn begin_block(&mut self, number: u32, threads: usize) {
        self.now += 1;
        self.block = self.now;
        self.met = self.now;
        self.blocks.push((self.now, number));
        self.threads = threads;
        self.known.clear();
    }

    /// All threads of the block meet.
    pub const fn meet_all(&mut self) {
        self.now += 1;
        self.met = self.now;
    }

    /// Some threads meet: each knows from now on what any of them knew or did.
    pub fn meet(&mut self, threads: &[usize]) {
        let n = self.threads;
        if self.known.is_empty() {
            self.known = vec![0; n * n];
        }
        let mut joined = vec![0; n];
        for &t in threads {
            let row = &self.known[t * n..][..n];
            joined.iter_mut().zip(row).for_each(|(all, one)| *all = (*all).max(*one));
        }
        threads.iter().for_each(|&t| joined[t] = self.now);
        threads.iter().for_each(|&t| self.known[t * n..][..n].copy_from_slice(&joined));
        self.now += 1;
    }

    /// Whether what a stamp tells of this launch came before what `thread` does now.
    fn orders(&self, stamp: Stamp, thread: u32) -> bool {
        let time = stamp.time();
        if time < self.block {
            return false;
        }
        let other = stamp.thread();
        other == thread
            || time < self.met
            || self
                .known
                .get(thread as usize * self.threads + other as usize)
                .is_some_and(|&known| known >= time)
    }

    /// The block that made a stamp.
    pub fn block_of(&self, stamp: Stamp) -> u32 {
        let after = self.blocks.partition_point(|(began, _)| *began <= stamp.time());
        after.checked_sub(1).map_or(0, |i| self.blocks[i].1)
    }
}

/// Which memory an access is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    /// That of one block: what others did with theirs is nothing to it.
    Block,
    /// That of all blocks of a launch.
    Launch,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub thread: u32,
    pub atomic: bool,
}

/// For each word the last write and two of the reads since: of different threads, and where they
/// can be of different warps.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    words: Vec<[u64; 3]>,
}

impl Shadow {
    pub fn new(bytes: usize) -> Self {
        Self { words: vec![[0; 3]; bytes.div_ceil(4)] }
    }

    fn words(&mut self, first: usize, len: usize) -> (impl Iterator<Item = &mut [u64; 3]>, u8) {
        let mask = if len >= 4 { 0xf } else { ((1u8 << len) - 1) << (first % 4) };
        (self.words[first / 4..(first + len).div_ceil(4)].iter_mut(), mask)
    }

    /// Notes a read; the write that it races with where there is one.
    pub fn read(
        &mut self,
        first: usize,
        len: usize,
        who: Who,
        among: Among,
        clock: &Clock,
    ) -> Result<(), Stamp> {
        let since = since(among, clock);
        let (words, mask) = self.words(first, len);
        let me = Stamp::new(clock.now, who.thread, mask, who.atomic);
        for [write, last, other] in words {
            let write = Stamp(*write);
            if write.time() >= since && meets(write, me, clock) {
                return Err(write);
            }
            let latest = Stamp(*last);
            if latest.thread() != me.thread() {
                let kept = Stamp(*other);
                let useful = kept.time() >= since.max(clock.met)
                    && kept.warp() != me.warp()
                    && kept.thread() != me.thread();
                if !(useful && kept.warp() != latest.warp()) {
                    *other = latest.0;
                }
            }
            *last = me.0;
        }
        Ok(())
    }

    /// Notes a write; the access that it races with where there is one.
    pub fn write(
        &mut self,
        first: usize,
        len: usize,
        who: Who,
        among: Among,
        clock: &Clock,
    ) -> Result<(), Stamp> {
        let since = since(among, clock);
        let (words, mask) = self.words(first, len);
        let me = Stamp::new(clock.now, who.thread, mask, who.atomic);
        for word in words {
            for stamp in word.map(Stamp) {
                if stamp.time() >= since && meets(stamp, me, clock) {
                    return Err(stamp);
                }
            }
            let before = Stamp(word[0]);
            let same = before.0 >> 8 == me.0 >> 8 && before.atomic() == me.atomic();
            word[0] = if same { before.0 | me.0 } else { me.0 };
        }
        Ok(())
    }

    /// Whether the launch has written any of these bytes.
    pub fn is_written(&mut self, first: usize, len: usize, clock: &Clock) -> bool {
        let (mut words, mask) = self.words(first, len);
        words.any(|[write, ..]| {
            Stamp(*write).time() >= clock.launch && Stamp(*write).bytes() & mask != 0
        })
    }
}

const fn since(among: Among, clock: &Clock) -> u32 {
    match among {
        Among::Block => clock.block,
        Among::Launch => clock.launch,
    }
}

fn meets(earlier: Stamp, me: Stamp, clock: &Clock) -> bool {
    !clock.orders(earlier, me.thread())
        && earlier.bytes() & me.bytes() != 0
        && !(earlier.atomic() && me.atomic())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn who(thread: u32) -> Who {
        Who { thread, atomic: false }
    }

    fn block() -> (Shadow, Clock) {
        let mut clock = Clock::new(0);
        clock.begin_block(0, 64);
        (Shadow::new(16), clock)
    }

    #[test]
    fn a_read_of_another_lane_is_not_forgotten() {
        let (mut shadow, clock) = block();
        for thread in [2, 3, 2, 3] {
            assert!(shadow.read(0, 4, who(thread), Among::Block, &clock).is_ok());
        }
        let met = shadow.write(0, 4, who(3), Among::Block, &clock);
        assert_eq!(met.map_err(Stamp::thread), Err(2));
    }

    #[test]
    fn a_read_of_another_warp_is_not_forgotten() {
        let (mut shadow, mut clock) = block();
        for thread in [1, 33, 2, 34, 35] {
            assert!(shadow.read(0, 4, who(thread), Among::Block, &clock).is_ok());
        }
        clock.meet(&(32..64).collect::<Vec<_>>());
        let met = shadow.write(0, 4, who(40), Among::Block, &clock);
        assert!(met.is_err_and(|stamp| stamp.thread() < 32));
    }

    #[test]
    fn threads_that_met_are_in_order() {
        let (mut shadow, mut clock) = block();
        assert!(shadow.write(0, 4, who(1), Among::Block, &clock).is_ok());
        clock.meet(&[1, 2]);
        clock.meet(&[2, 3]);
        assert!(shadow.read(0, 4, who(3), Among::Block, &clock).is_ok(), "by way of 2");
        assert!(shadow.read(0, 4, who(4), Among::Block, &clock).is_err());
        clock.meet_all();
        assert!(shadow.write(0, 4, who(4), Among::Block, &clock).is_ok());
    }

    #[test]
    fn bytes_of_a_word_are_apart() {
        let (mut shadow, clock) = block();
        assert!(shadow.write(0, 2, who(1), Among::Block, &clock).is_ok());
        assert!(shadow.write(2, 2, who(2), Among::Block, &clock).is_ok());
        assert!(shadow.write(2, 1, who(3), Among::Block, &clock).is_err());
    }
}
