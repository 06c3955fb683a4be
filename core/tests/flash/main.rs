//! Deltas in an emulated NOR flash whose power is cut at and within every operation.
#![cfg(feature = "flash")]

mod nor;

use embedded_storage::nor_flash::NorFlashErrorKind;
use nor::{Cut, Nor, Op};
use proptest::prelude::*;
use sepal_core::arena::Word;
use sepal_core::flash::{
    COMMIT, Delta, HEADER, Held, MAGIC, PARTS, Refusal, Slots, Store, StoreError, find, size,
};
use sepal_core::layer::{BatchNorm, Dense, Flatten, Layer};
use sepal_core::net::{Input, Net, Normalisation, Patch};
use sepal_core::rng::{Purpose, Rng};
use sepal_core::shape::Shape;

const BASE: u64 = 0x0123_4567_89ab_cdef;
const OTHER: u64 = !BASE;
/// Numbers of the parts of most deltas here: more than one buffer, and less than a word.
const NUMBERS: [u32; 2] = [70, 5];

type Error = StoreError<NorFlashErrorKind>;

/// What a device learnt: layers and numbers. Numbers are compared by their bits.
#[derive(Clone, PartialEq)]
struct Learnt(Vec<(u16, u16, Vec<u32>)>);

impl Learnt {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed, Purpose::Weights, 0, 0);
        let mut numbers = |n| (0..n).map(|_| rng.next_u32()).collect();
        Self(vec![(2, 5, numbers(NUMBERS[0])), (7, 8, numbers(NUMBERS[1]))])
    }

    fn floats(&self) -> Vec<(u16, u16, Vec<f32>)> {
        let float = |numbers: &Vec<u32>| numbers.iter().map(|&n| f32::from_bits(n)).collect();
        self.0.iter().map(|(first, last, numbers)| (*first, *last, float(numbers))).collect()
    }

    /// The delta's bytes by the specification alone.
    fn bytes(&self, sequence: u32, base: u64, granule: usize, committed: bool) -> Vec<u8> {
        let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(granule), 0);
        let mut body = vec![];
        let mut header = MAGIC.to_vec();
        for (_, _, numbers) in &self.0 {
            numbers.iter().for_each(|n| body.extend(n.to_le_bytes()));
            pad(&mut body);
        }
        header.extend(1u16.to_le_bytes());
        header.extend((granule as u16).to_le_bytes());
        header.extend(sequence.to_le_bytes());
        header.extend(base.to_le_bytes());
        header.extend(crc(&body).to_le_bytes());
        header.extend((self.0.len() as u32).to_le_bytes());
        for (first, last, numbers) in &self.0 {
            header.extend(first.to_le_bytes());
            header.extend(last.to_le_bytes());
            header.extend((numbers.len() as u32).to_le_bytes());
        }
        header.resize(HEADER - 4, 0);
        seal(&mut header);
        let checksum: [u8; 4] = *header.last_chunk().unwrap();
        pad(&mut header);
        let mut commit = if committed { [COMMIT, checksum].concat() } else { vec![0xff; granule] };
        pad(&mut commit);
        [header, commit, body].concat()
    }
}

impl std::fmt::Debug for Learnt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(a, b, n)| write!(f, "{a}..{b}: {:x?}.. ", &n[..1]))
    }
}

/// CRC-32 bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

/// Puts the checksum behind the fields of a header.
fn seal(header: &mut Vec<u8>) {
    header.truncate(HEADER - 4);
    header.extend(crc(header).to_le_bytes());
}

fn slots<const R: usize, const W: usize, const E: usize>() -> Slots {
    // Not at the flash's start, and with something between them.
    let size = size(&NUMBERS, R.max(W), E).unwrap();
    Slots { at: [E as u32, 2 * E as u32 + size], size }
}

fn capacity<const R: usize, const W: usize, const E: usize>() -> usize {
    let Slots { at, size } = slots::<R, W, E>();
    (at[1] + size) as usize + E
}

fn blank<const R: usize, const W: usize, const E: usize>() -> Nor<R, W, E> {
    Nor::new(vec![0xff; capacity::<R, W, E>()])
}

fn save<const R: usize, const W: usize, const E: usize>(
    nor: &mut Nor<R, W, E>,
    base: u64,
    learnt: &Learnt,
) -> Result<(), Error> {
    let floats = learnt.floats();
    let patches = floats.iter().map(|(first, last, numbers)| Patch {
        first: *first,
        last: *last,
        numbers: &numbers[..],
    });
    let mut store = Store::open(nor, slots::<R, W, E>(), base)?;
    store.save(&patches.collect::<Vec<_>>())?;
    // It goes on with what it saved.
    assert_eq!(read(&mut store).as_ref(), Some(learnt));
    Ok(())
}

fn forget<const R: usize, const W: usize, const E: usize>(
    nor: &mut Nor<R, W, E>,
) -> Result<(), Error> {
    let mut store = Store::open(nor, slots::<R, W, E>(), BASE)?;
    store.forget()?;
    assert!(store.newest().is_none());
    Ok(())
}

/// The newest delta, its numbers read in pieces.
fn read<const R: usize, const W: usize, const E: usize>(
    store: &mut Store<&mut Nor<R, W, E>>,
) -> Option<Learnt> {
    let delta = *store.newest()?;
    let parts = delta.parts().iter().enumerate().map(|(index, part)| {
        let mut numbers = vec![0.0; part.len as usize];
        let mut at = 0;
        for piece in numbers.chunks_mut(67) {
            store.read(index, at, piece).unwrap();
            at += piece.len() as u32;
        }
        (part.first, part.last, numbers.iter().map(|n| n.to_bits()).collect())
    });
    Some(Learnt(parts.collect()))
}

/// What a start finds, by the driver and in place.
fn load<const R: usize, const W: usize, const E: usize>(
    nor: &mut Nor<R, W, E>,
    base: u64,
) -> Option<Learnt> {
    nor.start(None);
    let mut store = Store::open(&mut *nor, slots::<R, W, E>(), base).unwrap();
    let loaded = read(&mut store);
    if !nor.corrects {
        assert_eq!(loaded, in_place(&nor.bytes, slots::<R, W, E>(), base));
    }
    loaded
}

fn in_place(bytes: &[u8], slots: Slots, base: u64) -> Option<Learnt> {
    let mut memory = [vec![], vec![]];
    for (at, words) in slots.at.iter().zip(&mut memory) {
        words.resize(Word::count(slots.size as usize), Word::ZERO);
        let to: &mut [u8] = bytemuck::cast_slice_mut(words);
        to[..slots.size as usize].copy_from_slice(&bytes[*at as usize..][..slots.size as usize]);
    }
    let [a, b] =
        [&memory[0], &memory[1]].map(|words| &bytemuck::cast_slice(words)[..slots.size as usize]);
    let mapped = find([a, b], base)?;
    let part = |index| {
        let patch = mapped.patch(index)?;
        assert!(patch.numbers.as_ptr().addr().is_multiple_of(16));
        Some((patch.first, patch.last, patch.numbers.iter().map(|n| n.to_bits()).collect()))
    };
    Some(Learnt((0..).map_while(part).collect()))
}

/// Every way in which an operation is cut: at each of its words where `fine`.
fn cuts(op: Op, word: usize, fine: bool) -> Vec<Cut> {
    let mut cuts = vec![Cut::Nothing, Cut::Mixed, Cut::Any, Cut::All];
    match op {
        Op::Write(len) => {
            let step = if fine { word } else { (len / 2).next_multiple_of(word) };
            let places = (0..len).step_by(step);
            cuts.extend(places.flat_map(|n| [Cut::Prefix(n), Cut::Torn(n)]));
        }
        Op::Erase(len) => {
            // Headers and commit words stay, and not.
            let places = [HEADER, 128, 144, 512, len - 4].into_iter().filter(|&n| n < len);
            cuts.extend(places.flat_map(|n| [Cut::Prefix(n), Cut::Torn(n), Cut::AnyBehind(n)]));
        }
    }
    cuts
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Save(u64),
    Forget,
}

impl Act {
    fn run<const R: usize, const W: usize, const E: usize>(
        self,
        nor: &mut Nor<R, W, E>,
    ) -> Result<(), Error> {
        match self {
            Self::Save(seed) => save(nor, BASE, &Learnt::new(seed)),
            Self::Forget => forget(nor),
        }
    }

    fn result(self) -> Option<Learnt> {
        match self {
            Self::Save(seed) => Some(Learnt::new(seed)),
            Self::Forget => None,
        }
    }
}

/// Calls `then` with what each cut of each operation of `act` leaves.
fn cut_everywhere<const R: usize, const W: usize, const E: usize>(
    from: &Nor<R, W, E>,
    act: Act,
    fine: bool,
    mut then: impl FnMut(Nor<R, W, E>, &dyn std::fmt::Debug),
) {
    let mut whole = from.clone();
    whole.start(None);
    act.run(&mut whole).unwrap();
    assert!(!whole.log.is_empty());
    for (index, &op) in whole.log.iter().enumerate() {
        for cut in cuts(op, W, fine) {
            let mut nor = from.clone();
            nor.seed(index as u64);
            nor.start(Some((index, cut)));
            assert_eq!(act.run(&mut nor), Err(StoreError::Flash(NorFlashErrorKind::Other)));
            then(nor, &(act, index, op, cut));
        }
    }
}

/// Flash before an operation, of every kind.
fn before<const R: usize, const W: usize, const E: usize>() -> Vec<(&'static str, Nor<R, W, E>)> {
    let saved = |from: &Nor<R, W, E>, base, seeds: &[u64]| {
        let mut nor = from.clone();
        for &seed in seeds {
            save(&mut nor, base, &Learnt::new(seed)).unwrap();
        }
        nor
    };
    let mut rng = Rng::new(5, Purpose::Weights, 0, 0);
    let noise = (0..capacity::<R, W, E>()).map(|_| rng.below(256) as u8).collect();
    let blank = blank::<R, W, E>();
    let mut forgotten = saved(&blank, BASE, &[1, 2]);
    forget(&mut forgotten).unwrap();
    vec![
        ("noise", Nor::new(noise)),
        ("zeros", Nor::new(vec![0; capacity::<R, W, E>()])),
        ("one delta", saved(&blank, BASE, &[1])),
        ("two deltas", saved(&blank, BASE, &[1, 2])),
        ("three saves", saved(&blank, BASE, &[1, 2, 3])),
        ("deltas of another model", saved(&blank, OTHER, &[1, 2])),
        ("an older delta of another model", saved(&saved(&blank, OTHER, &[1]), BASE, &[2])),
        ("a newer delta of another model", saved(&saved(&blank, BASE, &[1]), OTHER, &[2])),
        ("forgotten", forgotten),
        ("erased", blank),
    ]
}

/// What must hold after a cut: the old delta or the new one is there, and all goes on.
fn survives<const R: usize, const W: usize, const E: usize>(
    mut nor: Nor<R, W, E>,
    old: &Option<Learnt>,
    new: &Option<Learnt>,
    what: &dyn std::fmt::Debug,
) {
    let loaded = load(&mut nor, BASE);
    assert!(loaded == *old || loaded == *new, "{what:?}: {loaded:?}, not {old:?} or {new:?}");
    assert_eq!(load(&mut nor, BASE), loaded, "{what:?}: another at the next start");
    let mut forgotten = nor.clone();
    save(&mut nor, BASE, &Learnt::new(99)).unwrap();
    assert_eq!(load(&mut nor, BASE), Some(Learnt::new(99)), "{what:?}");
    forget(&mut forgotten).unwrap();
    assert_eq!(load(&mut forgotten, BASE), None, "{what:?}");
}

fn every_cut<const R: usize, const W: usize, const E: usize>(corrects: bool) -> usize {
    let mut count = 0;
    for (name, mut nor) in before::<R, W, E>() {
        nor.corrects = corrects;
        let old = load(&mut nor, BASE);
        for act in [Act::Save(50), Act::Forget] {
            cut_everywhere(&nor, act, true, |nor, what| {
                count += 1;
                survives(nor, &old, &act.result(), &(name, what));
            });
        }
    }
    count
}

/// A second operation after one that was cut, itself cut.
fn every_second_cut<const R: usize, const W: usize, const E: usize>() -> usize {
    let mut count = 0;
    // The others are what a first cut leaves of these.
    let names = ["noise", "two deltas", "a newer delta of another model"];
    for (name, nor) in before::<R, W, E>().into_iter().filter(|(name, _)| names.contains(name)) {
        for first in [Act::Save(50), Act::Forget] {
            cut_everywhere(&nor, first, false, |mut nor, was| {
                let old = load(&mut nor, BASE);
                for second in [Act::Save(51), Act::Forget] {
                    cut_everywhere(&nor, second, false, |nor, what| {
                        count += 1;
                        survives(nor, &old, &second.result(), &(name, was, what));
                    });
                }
            });
        }
    }
    count
}

macro_rules! each_geometry {
    ($($name:ident: $r:literal, $w:literal, $e:literal;)*) => {
        $(mod $name {
            #[test]
            fn power_may_go_anywhere() {
                let cuts = super::every_cut::<$r, $w, $e>(false);
                assert!(cuts > 900, "{cuts} cuts");
            }

            #[test]
            fn power_may_go_where_words_are_corrected() {
                super::every_cut::<$r, $w, $e>(true);
            }

            #[test]
            fn power_may_go_again() {
                let cuts = super::every_second_cut::<$r, $w, $e>();
                assert!(cuts > 20_000, "{cuts} cuts");
            }

            #[test]
            fn marginal_bits_lose_nothing_that_was_saved() {
                super::marginal::<$r, $w, $e>();
            }

            #[test]
            fn the_bytes_are_those_of_the_specification() {
                super::specified::<$r, $w, $e>();
            }

            #[test]
            fn every_flipped_bit_is_seen() {
                super::flipped::<$r, $w, $e>();
            }
        })*
    };
}

each_geometry! {
    bytes_in_small_units: 1, 1, 256;
    bytes_in_large_units: 4, 1, 1024;
    words_in_small_units: 1, 4, 256;
    words_in_large_units: 4, 4, 1024;
    double_words_in_small_units: 1, 8, 256;
    double_words_in_large_units: 8, 8, 1024;
    quarters_of_lines: 1, 16, 128;
    lines: 32, 32, 512;
    read_by_lines: 64, 4, 512;
    pages: 1, 256, 4096;
    units_of_odd_size: 4, 4, 132;
}

/// Saves and factory resets, most of them cut, some leaving bits that read in another way at each
/// start. Whatever is loaded is one of what may be in force: the last that succeeded or one that
/// was tried since. After two cuts an operation comes to its end: three in a row, each at its
/// worst, are more than the layout is made for.
fn marginal<const R: usize, const W: usize, const E: usize>() {
    let mut rng = Rng::new(3, Purpose::Weights, 0, 0);
    let (mut cuts, mut unsettled) = (0, 0);
    for run in 0..1000 {
        let mut nor = blank::<R, W, E>();
        nor.seed(run);
        let mut possible = vec![None];
        for step in 0..12 {
            let act = if rng.below(6) == 0 { Act::Forget } else { Act::Save(run * 100 + step) };
            let loaded = load(&mut nor, BASE);
            assert!(possible.contains(&loaded), "run {run}, {act:?}: {loaded:?} of {possible:?}");
            unsettled += usize::from(possible.len() > 1);
            // Seven operations a save: most cuts hit, some do not. The commit is the last.
            let cut = match rng.below(4) {
                _ if possible.len() > 2 => None,
                0 => None,
                1 => Some((rng.below(8) as usize, Cut::Mixed)),
                _ => Some((rng.below(8) as usize, Cut::Marginal)),
            };
            nor.start(cut);
            match act.run(&mut nor) {
                Ok(()) => possible = vec![act.result()],
                Err(StoreError::Flash(_)) => {
                    cuts += 1;
                    possible.push(act.result());
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
    assert!(cuts > 1000 && unsettled > 1000, "{cuts} cuts, {unsettled} unsettled starts");
}

fn specified<const R: usize, const W: usize, const E: usize>() {
    let granule = R.max(W).max(16);
    let Slots { at, size } = slots::<R, W, E>();
    let mut nor = blank::<R, W, E>();
    let learnt = Learnt::new(1);
    save(&mut nor, BASE, &Learnt::new(0)).unwrap();
    let untouched = nor.bytes.clone();
    save(&mut nor, BASE, &learnt).unwrap();
    let expected = learnt.bytes(2, BASE, granule, true);
    assert_eq!(nor.bytes[at[1] as usize..][..expected.len()], expected);
    assert_eq!(expected.len().next_multiple_of(E), size as usize);
    let (first, second) = (at[0] as usize..(at[0] + size) as usize, at[1] as usize);
    assert_eq!(nor.bytes[first.clone()], untouched[first.clone()], "the other slot");
    let around = [
        &nor.bytes[..first.start],
        &nor.bytes[first.end..second],
        &nor.bytes[second + size as usize..],
    ];
    assert!(around.concat().iter().all(|&byte| byte == 0xff), "nothing beside the slots");

    // A reader finds what the specification's writer made, without a word that commits it too.
    for committed in [true, false] {
        let bytes = learnt.bytes(9, BASE, granule, committed);
        let mut image = vec![0xff; capacity::<R, W, E>()];
        image[at[0] as usize..][..bytes.len()].copy_from_slice(&bytes);
        assert_eq!(load(&mut Nor::<R, W, E>::new(image), BASE), Some(learnt.clone()));
    }
}

fn flipped<const R: usize, const W: usize, const E: usize>() {
    let granule = R.max(W).max(16);
    let (old, new) = (Some(Learnt::new(0)), Learnt::new(1));
    let mut nor = blank::<R, W, E>();
    save(&mut nor, BASE, &Learnt::new(0)).unwrap();
    save(&mut nor, BASE, &new).unwrap();
    let len = new.bytes(2, BASE, granule, true).len();
    let commit = HEADER.next_multiple_of(granule);
    for at in 0..len {
        // Padding behind the header and behind the commit word means nothing.
        let padding =
            (HEADER..commit).contains(&at) || (commit + 8..commit + granule).contains(&at);
        for bit in 0..8 {
            let mut nor = nor.clone();
            nor.bytes[slots::<R, W, E>().at[1] as usize + at] ^= 1 << bit;
            let loaded = load(&mut nor, BASE);
            let expected = if padding { &Some(new.clone()) } else { &old };
            assert_eq!(loaded, *expected, "bit {bit} of byte {at}");
        }
    }
}

type Words = Nor<4, 4, 256>;

fn open(nor: &mut Words) -> Store<&mut Words> {
    Store::open(nor, slots::<4, 4, 256>(), BASE).unwrap()
}

/// Flash with these bytes at the beginning of the two slots.
fn with(bytes: [&[u8]; 2]) -> Words {
    let mut nor = blank::<4, 4, 256>();
    for (at, bytes) in slots::<4, 4, 256>().at.iter().zip(bytes) {
        nor.bytes[*at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    nor
}

#[test]
fn numbers_in_several_places_are_one_part() {
    let learnt = Learnt::new(1);
    let floats = learnt.floats();
    let (first, second) = floats[0].2.split_at(33);
    let block = |numbers| Patch { first: 2, last: 5, numbers };
    let patches = [
        block(first),
        block(&[]),
        block(second),
        Patch { first: 7, last: 8, numbers: &floats[1].2 },
    ];
    let mut nor = blank();
    open(&mut nor).save(&patches).unwrap();
    assert_eq!(load(&mut nor, BASE), Some(learnt));
}

#[test]
fn sequence_numbers_go_round() {
    let delta = |seed, sequence| Learnt::new(seed).bytes(sequence, BASE, 16, true);
    for (sequences, newest) in [
        ([u32::MAX - 1, u32::MAX], 1),
        ([u32::MAX, 0], 1),
        ([0, u32::MAX], 0),
        ([1, 0], 0),
        ([i32::MAX as u32, 1 << 31], 1),
    ] {
        let mut nor = with([&delta(0, sequences[0]), &delta(1, sequences[1])]);
        assert_eq!(load(&mut nor, BASE), Some(Learnt::new(newest)), "{sequences:?}");
        for seed in 2..5 {
            save(&mut nor, BASE, &Learnt::new(seed)).unwrap();
            assert_eq!(load(&mut nor, BASE), Some(Learnt::new(seed)), "{sequences:?}");
        }
        let expected = sequences[newest as usize].wrapping_add(3);
        assert_eq!(open(&mut nor).newest().unwrap().sequence(), expected);
    }
}

#[test]
fn the_order_is_right_beside_garbage() {
    let whole = Learnt::new(1).bytes(7, BASE, 16, true);
    let mut cut = Learnt::new(2).bytes(900, BASE, 16, true);
    *cut.last_mut().unwrap() ^= 1;
    for (bytes, at) in [([&whole[..], &cut], 1), ([&cut[..], &whole], 0)] {
        let mut nor = with(bytes);
        assert_eq!(load(&mut nor, BASE), Some(Learnt::new(1)));
        save(&mut nor, BASE, &Learnt::new(3)).unwrap();
        assert_eq!(load(&mut nor, BASE), Some(Learnt::new(3)));
        assert_eq!(open(&mut nor).held()[at].delta().map(Delta::sequence), Some(8));
    }
}

#[test]
fn a_delta_that_is_not_committed_yields() {
    let delta = |seed, sequence, committed| Learnt::new(seed).bytes(sequence, BASE, 16, committed);
    let (old, new) = (delta(1, 5, true), delta(2, 6, false));
    assert_eq!(load(&mut with([&old, &new]), BASE), Some(Learnt::new(1)));
    assert_eq!(load(&mut with([&new, &old]), BASE), Some(Learnt::new(1)));
    // Neither is: the one that was in force while the other was being saved.
    let old = delta(1, 5, false);
    assert_eq!(load(&mut with([&old, &new]), BASE), Some(Learnt::new(1)));
    assert_eq!(load(&mut with([&new, &old]), BASE), Some(Learnt::new(1)));
    assert_eq!(load(&mut with([&new, &[]]), BASE), Some(Learnt::new(2)));
    let mut nor = with([&new, &[]]);
    let store = open(&mut nor);
    assert!(!store.newest().unwrap().is_committed());
}

#[test]
fn what_an_erase_left_of_a_newer_delta_does_not_come_back() {
    // A factory reset was cut; the delta is there at one start and gone at the next.
    let gone = Learnt::new(1).bytes(7, BASE, 16, true);
    let mut nor = with([&[], &gone]);
    nor.bytes[slots::<4, 4, 256>().at[1] as usize] ^= 1;
    save(&mut nor, BASE, &Learnt::new(2)).unwrap();
    let at = slots::<4, 4, 256>().at[1] as usize;
    assert!(nor.bytes[at..][..gone.len()].iter().all(|&byte| byte == 0xff));
    assert_eq!(load(&mut nor, BASE), Some(Learnt::new(2)));
}

#[test]
fn deltas_of_another_model_are_kept_as_long_as_there_is_room() {
    let mut nor = blank();
    save(&mut nor, OTHER, &Learnt::new(1)).unwrap();
    save(&mut nor, OTHER, &Learnt::new(2)).unwrap();
    assert_eq!(load(&mut nor, BASE), None);
    let bases = open(&mut nor).held().map(|held| held.delta().map(Delta::base));
    assert_eq!(bases, [Some(OTHER); 2]);
    // The other model's newest is there for the day on which that model is back.
    save(&mut nor, BASE, &Learnt::new(3)).unwrap();
    assert_eq!(load(&mut nor, BASE), Some(Learnt::new(3)));
    assert_eq!(load(&mut nor, OTHER), Some(Learnt::new(2)));
    save(&mut nor, BASE, &Learnt::new(4)).unwrap();
    assert_eq!(load(&mut nor, BASE), Some(Learnt::new(4)));
    assert_eq!(load(&mut nor, OTHER), None);
    // A factory reset is for all of them.
    save(&mut nor, OTHER, &Learnt::new(5)).unwrap();
    forget(&mut nor).unwrap();
    assert_eq!((load(&mut nor, BASE), load(&mut nor, OTHER)), (None, None));
}

#[test]
fn what_is_refused_says_why() {
    let whole = Learnt::new(1).bytes(7, BASE, 16, true);
    let held = |at: usize, bytes: &[u8]| {
        let mut slot = whole.clone();
        slot[at..at + bytes.len()].copy_from_slice(bytes);
        let mut header = slot[..HEADER].to_vec();
        seal(&mut header);
        slot[..HEADER].copy_from_slice(&header);
        let mut nor = with([&slot, &[]]);
        assert_eq!(load(&mut nor, BASE), None);
        assert_eq!(open(&mut nor).held()[1], Held::Nothing);
        match open(&mut nor).held()[0] {
            Held::Refused(refusal) => refusal.to_string(),
            held => panic!("{held:?}"),
        }
    };
    let word = u32::to_le_bytes;
    for (at, bytes, expected) in [
        (8, &[2u8, 0][..], "version 2, expected 1"),
        (10, &[8, 0], "granule is 8, expected 16"),
        (10, &[24, 0], "granule is 24, expected 16"),
        (10, &[0, 2], "granule is 512, expected 16"),
        (28, &word(0), "parts is 0, expected 1"),
        (28, &word(1), "parts is 1, expected 2"),
        (28, &word(3), "first layer is 0, expected 8"),
        (28, &word(9), "parts is 9, expected 8"),
        (36, &word(0), "numbers of a part is 0, expected 1"),
        (32, &[5, 0], "last layer is 5, expected 6"),
        (40, &[4, 0], "first layer is 4, expected 5"),
        (100, &[1], "reserved byte is 1, expected 0"),
        (36, &word(1000), "size of the slot is 512, expected 4160"),
        (36, &word(u32::MAX), "size of the slot is 512, expected 4294967295"),
        (36, &word(73), "checksum of the numbers is"),
        (200, &[1, 2, 3], "checksum of the numbers is"),
    ] {
        let found = held(at, bytes);
        assert!(found.starts_with(expected), "{found}, expected {expected}");
    }
    let mut parts = Learnt::new(1);
    parts.0 = (0..8).map(|i| (i, i + 1, vec![u32::from(i)])).collect();
    let mut slot = parts.bytes(1, BASE, 16, true);
    assert_eq!(load(&mut with([&slot, &[]]), BASE), Some(parts));
    slot[50] ^= 1;
    let Held::Refused(Refusal::Checksum { of: "header", .. }) =
        open(&mut with([&slot, &[]])).held()[0]
    else {
        panic!("a header that changed");
    };
}

#[test]
fn words_that_cannot_be_read_are_passed_over() {
    let mut nor = blank::<4, 4, 256>();
    nor.corrects = true;
    save(&mut nor, BASE, &Learnt::new(1)).unwrap();
    for at in [1, 4] {
        nor.start(Some((at, Cut::Torn(8))));
        save(&mut nor, BASE, &Learnt::new(2)).unwrap_err();
        nor.start(None);
        let seen = open(&mut nor).held()[1];
        let unreadable = Held::Refused(Refusal::Unreadable(NorFlashErrorKind::Other));
        // The body is not looked at without a header.
        assert_eq!(seen, if at == 4 { unreadable } else { Held::Nothing });
        assert_eq!(load(&mut nor, BASE), Some(Learnt::new(1)));
    }
    save(&mut nor, BASE, &Learnt::new(3)).unwrap();
    assert_eq!(load(&mut nor, BASE), Some(Learnt::new(3)));
}

#[test]
fn flash_that_does_not_take_what_it_is_given_is_seen() {
    let mut nor = blank::<4, 4, 256>();
    save(&mut nor, BASE, &Learnt::new(1)).unwrap();
    nor.protected = true;
    let [first, second] = slots::<4, 4, 256>().at;
    assert_eq!(save(&mut nor, BASE, &Learnt::new(2)), Err(StoreError::Verify { at: second }));
    assert_eq!(load(&mut nor, BASE), Some(Learnt::new(1)));
    assert_eq!(forget(&mut nor), Err(StoreError::Verify { at: first }));
    assert_eq!(load(&mut nor, BASE), Some(Learnt::new(1)));
}

#[test]
fn a_save_that_cannot_be_is_refused_before_anything_is_written() {
    let numbers = [0.0; 200];
    let part = |first, last, n| Patch { first, last, numbers: &numbers[..n] };
    let many: Vec<_> = (0..=PARTS as u16).map(|i| part(i, i + 1, 1)).collect();
    for (patches, expected) in [
        (&[][..], StoreError::Parts { given: 0 }),
        (&many, StoreError::Parts { given: 9 }),
        (&[part(3, 3, 1)], StoreError::Layers { first: 3, last: 3, after: 0 }),
        (&[part(3, 5, 1), part(4, 6, 1)], StoreError::Layers { first: 4, last: 6, after: 5 }),
        (
            &[part(3, 5, 1), part(7, 8, 1), part(3, 5, 1)],
            StoreError::Layers { first: 3, last: 5, after: 8 },
        ),
        (&[part(3, 5, 0)], StoreError::NoNumbers { first: 3, last: 5 }),
        (&[part(3, 5, 93)], StoreError::Size { needed: 512, given: 256 }),
        (&[part(3, 5, 29), part(5, 6, 1)], StoreError::Size { needed: 272, given: 256 }),
    ] {
        let mut nor = blank::<4, 4, 256>();
        let slots = Slots::adjacent(0, 256);
        let found = Store::open(&mut nor, slots, BASE).unwrap().save(patches);
        assert_eq!((found, nor.log.len()), (Err(expected), 0));
    }
    let mut nor = blank::<4, 4, 256>();
    let mut store = Store::open(&mut nor, Slots::adjacent(0, 256), BASE).unwrap();
    assert_eq!(store.save(&many[..8]), Ok(()), "8 parts of 16 bytes fill a slot");
    let too_large = store.save(&[part(3, 5, 93)]).unwrap_err();
    assert_eq!(too_large.to_string(), "512 bytes of flash are needed, a slot has 256");
}

#[test]
fn numbers_that_are_not_there_are_not_read() {
    let mut nor = blank();
    let into = &mut [0.0; 6];
    let not_stored = |part, end, stored| Err(StoreError::NotStored { part, end, stored });
    assert_eq!(open(&mut nor).read(0, 0, into), not_stored(0, 6, 0));
    save(&mut nor, BASE, &Learnt::new(1)).unwrap();
    let mut store = open(&mut nor);
    assert_eq!(store.read(1, 0, into), not_stored(1, 6, 5));
    assert_eq!(store.read(1, u32::MAX, into), not_stored(1, u64::from(u32::MAX) + 6, 5));
    assert_eq!(store.read(2, 0, into), not_stored(2, 6, 0));
    assert_eq!(store.read(0, 70, &mut []), Ok(()));
    assert_eq!(store.read(0, 64, into), Ok(()));
}

#[test]
fn slots_are_checked() {
    fn opened<const R: usize, const W: usize, const E: usize>(
        at: [u32; 2],
        size: u32,
    ) -> Option<Error> {
        let mut nor = Nor::<R, W, E>::new(vec![0xff; 1 << 14]);
        Store::open(&mut nor, Slots { at, size }, BASE).err()
    }
    assert_eq!(opened::<4, 4, 256>([0, 512], 512), None);
    assert_eq!(opened::<4, 4, 256>([512, 0], 512), None);
    assert_eq!(opened::<4, 4, 256>([0, 0], 0), None, "an empty slot holds nothing");
    let unaligned = |at, size, unit| Some(StoreError::Unaligned { at, size, unit });
    assert_eq!(opened::<4, 4, 256>([0, 640], 512), unaligned(640, 512, 256));
    assert_eq!(opened::<4, 4, 256>([0, 768], 640), unaligned(0, 640, 256));
    assert_eq!(opened::<4, 64, 96>([0, 192], 192), None);
    assert_eq!(opened::<4, 64, 96>([0, 96], 96), unaligned(0, 96, 64));
    assert_eq!(opened::<1, 1, 0>([0, 512], 512), unaligned(0, 512, 0));
    assert_eq!(
        opened::<4, 4, 256>([0, 256], 512),
        Some(StoreError::Overlap { at: [0, 256], size: 512 })
    );
    assert_eq!(
        opened::<4, 4, 256>([0, 0], 512),
        Some(StoreError::Overlap { at: [0, 0], size: 512 })
    );
    let outside = StoreError::Outside { end: (1 << 14) + 256, capacity: 1 << 14 };
    assert_eq!(opened::<4, 4, 256>([(1 << 14) - 256, 0], 512), Some(outside));
    let far = StoreError::Outside { end: 2 * ((1 << 32) - 256), capacity: 1 << 14 };
    assert_eq!(opened::<4, 4, 256>([u32::MAX - 255, 0], u32::MAX - 255), Some(far));
    for (found, read, write) in [
        (opened::<4, 0, 256>([0, 512], 512), 4, 0),
        (opened::<3, 4, 256>([0, 512], 512), 3, 4),
        (opened::<4, 512, 512>([0, 512], 512), 4, 512),
    ] {
        assert_eq!(found, Some(StoreError::Word { read, write }));
    }
    assert_eq!(Slots::adjacent(512, 256), Slots { at: [512, 768], size: 256 });
}

#[test]
fn sizes_are_checked() {
    assert_eq!(size(&[1], 1, 1), Some(128 + 16));
    assert_eq!(size(&[4, 5], 32, 32), Some(160 + 32 + 32));
    assert_eq!(size(&[], 256, 1), Some(512));
    assert_eq!(size(&[1], 256, 4096), Some(4096));
    assert_eq!(size(&[1], 0, 4096), None);
    assert_eq!(size(&[1], 512, 4096), None);
    assert_eq!(size(&[1], 4, 0), None);
    assert_eq!(size(&[1; PARTS], 4, 64), Some(128 + 128));
    assert_eq!(size(&[1; PARTS + 1], 4, 64), None);
    assert_eq!(size(&[(1 << 30) - 1024 - 32], 4, 4096), Some(0xffff_f000), "the last unit but one");
    assert_eq!(size(&[(1 << 30) - 1024 - 31], 4, 4096), None);
    assert_eq!(size(&[u32::MAX], 4, 4096), None);
}

#[test]
fn parts_are_checked_against_the_net() {
    const NET: Net<'static> = Net {
        input: Input { shape: Shape::rows(1, 3), normalisation: Normalisation::NONE },
        layers: &[
            Layer::Dense(Dense { units: 2, bias: true }),
            Layer::BatchNorm(BatchNorm::new()),
            Layer::Flatten(Flatten),
            Layer::Dense(Dense { units: 4, bias: false }),
        ],
        blocks: &[2, 4],
        features: 1,
    };
    let check = |parts: &[(u16, u16, usize)]| {
        let learnt = Learnt(parts.iter().map(|&(a, b, n)| (a, b, vec![0; n])).collect());
        let mut nor = with([&learnt.bytes(1, BASE, 16, true), &[]]);
        open(&mut nor).newest().unwrap().check(&NET).map_err(|e| e.to_string())
    };
    assert_eq!(check(&[(0, 1, 8), (2, 4, 8)]), Ok(()));
    assert_eq!(check(&[(0, 2, 12), (3, 4, 8)]), Ok(()));
    let wrong = |text: &str| Err(text.to_string());
    assert_eq!(check(&[(0, 1, 8), (3, 4, 9)]), wrong("layers 3..4 have 8 numbers, 9 are stored"));
    assert_eq!(check(&[(2, 5, 8)]), wrong("layers 2..5 have 0 numbers, 8 are stored"));
}

/// `docs/flash.md` has a vector.
#[test]
fn the_vector_of_the_specification_is_what_is_written() {
    let mut nor = Nor::<4, 4, 256>::new(vec![0; 512]);
    let patches = [
        Patch { first: 2, last: 4, numbers: &[0.5, -1.0] },
        Patch { first: 6, last: 7, numbers: &[2.0, 3.0, 4.0, 5.0, 6.0] },
    ];
    let mut store = Store::open(&mut nor, Slots::adjacent(0, 256), 0xbd6a_7502_00f1_c967).unwrap();
    store.save(&patches).unwrap();
    let page = include_str!("../../../docs/flash.md");
    let block = page.split("```hex\n").nth(1).unwrap().split("```").next().unwrap();
    let digits = block.lines().flat_map(|line| line[6..].split("  ").next().unwrap().split(' '));
    let vector: Vec<_> = digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let lines = nor.bytes[..176].chunks(16).enumerate();
    let dump: String = lines.map(|(i, line)| format!("{:04x}: {line:02x?}\n", i * 16)).collect();
    assert!(vector == nor.bytes[..176], "{}", dump.replace([',', '[', ']'], ""));
}

#[test]
fn flash_where_numbers_cannot_be_used_in_place_is_read_through_a_store() {
    let delta = Learnt::new(1).bytes(1, BASE, 16, true);
    let mut memory = [Word::ZERO; 64];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
    bytes[1..=delta.len()].copy_from_slice(&delta);
    let mapped = find([&bytes[1..=delta.len()], &[]], BASE).unwrap();
    assert_eq!((mapped.delta().parts().len(), mapped.patch(0)), (2, None));
    let mapped = find([&[], &delta], BASE).unwrap();
    assert_eq!(mapped.patch(2), None);
    // A slot that ends within the delta.
    assert!(find([&delta[..delta.len() - 1], &[]], BASE).is_none());
}

proptest! {
    /// Whatever lies there, nothing panics, nothing is taken for a delta, and a save succeeds.
    #[test]
    fn any_bytes_are_no_delta(mut bytes in prop::collection::vec(any::<u8>(), capacity::<4, 4, 256>()), magic: bool) {
        if magic {
            for at in slots::<4, 4, 256>().at {
                bytes[at as usize..][..8].copy_from_slice(&MAGIC);
            }
        }
        let mut nor = Words::new(bytes);
        prop_assert_eq!(load(&mut nor, BASE), None);
        save(&mut nor, BASE, &Learnt::new(1)).unwrap();
        prop_assert_eq!(load(&mut nor, BASE), Some(Learnt::new(1)));
    }

    /// Headers with any fields and the right checksum: nothing panics, in words of any size.
    #[test]
    fn any_fields_are_read(
        fields in prop::collection::vec(any::<u8>(), HEADER - 12),
        few in prop::collection::vec(0usize..HEADER - 12, 0..3),
        len in 0usize..600,
    ) {
        let mut slot = Learnt::new(1).bytes(1, BASE, 16, true);
        for &at in &few {
            slot[8 + at] = fields[at];
        }
        if few.is_empty() {
            slot[10..HEADER - 4].copy_from_slice(&fields[..HEADER - 14]);
        }
        let mut header = slot[..HEADER].to_vec();
        seal(&mut header);
        slot[..HEADER].copy_from_slice(&header);
        slot.truncate(len);
        if let Some(mapped) = find([&slot, &slot], BASE) {
            prop_assert!(mapped.delta().bytes() <= slot.len() as u64);
            prop_assert!(mapped.patch(0).is_none_or(|patch| !patch.numbers.is_empty()));
        }
        slot.resize(slots::<4, 4, 256>().size as usize, 0xff);
        let mut nor = with([&slot, &[]]);
        let loaded = load(&mut nor, BASE);
        save(&mut nor, BASE, &Learnt::new(2)).unwrap();
        prop_assert_eq!(load(&mut nor, BASE), Some(Learnt::new(2)), "after {:?}", loaded);
    }
}
