//! The host's way to slots, the optimiser and the input: what is copied, and what is refused.

use sepal_core::arena::{ArenaError, Dtype, Slot};
use sepal_core::backend::{Host, HostMut};
use sepal_core::error::Error;
use sepal_core::layer::{Conv2d, Dense, Layer};
use sepal_core::net::Normalisation;
use sepal_core::optim::Rule;
use sepal_core::plan::{self, Chain};
use sepal_core::shape::Shape;

use crate::{Cut, Tolerance, With, len, read, run, values, wide, write};

/// Three slots, one of each type that the host writes.
fn slots(cut: &mut Cut) -> [Slot; 3] {
    [
        cut.slot(Shape::new(2, 3, 2, 1), Dtype::F32),
        cut.slot(Shape::new(1, 3, 1, 5), Dtype::U8),
        cut.slot(Shape::rows(1, 7), Dtype::U16),
    ]
}

/// What is written is read, in all types, and nothing beside it changes.
pub fn round_trips(with: With) {
    let mut cut = Cut::default();
    let [f, u, l] = slots(&mut cut);
    run(with, cut.bytes, |b| {
        let numbers = values(1, 12);
        let bytes: Vec<u8> = (0..15).map(|i| i * 17).collect();
        let labels: Vec<u16> = (0..7).map(|i| i * 9_000).collect();
        b.write(u, Host::U8(&bytes)).expect("bytes");
        b.write(l, Host::U16(&labels)).expect("labels");
        write(b, f, &numbers);
        let (mut bytes_read, mut labels_read) = ([0; 15], [0; 7]);
        b.read(u, HostMut::U8(&mut bytes_read)).expect("bytes");
        b.read(l, HostMut::U16(&mut labels_read)).expect("labels");
        assert_eq!(read(b, f), numbers);
        assert_eq!(bytes_read[..], bytes);
        assert_eq!(labels_read[..], labels);
        // A part of the samples.
        write(b, f.samples(1, 1), &[9.0; 6]);
        assert_eq!(read(b, f.head(1)), numbers[..6]);
        assert_eq!(read(b, f)[6..], [9.0; 6]);
        // Bits, NaN among them.
        let odd = [f32::NAN, -0.0, f32::INFINITY, f32::MIN_POSITIVE / 4.0, 1.0, 2.0];
        write(b, f.head(1), &odd);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read(b, f.head(1))), bits(&odd));
    });
}

/// The host fills a slot where it lies, or through staging memory.
pub fn fill(with: With) {
    let mut cut = Cut::default();
    let [f, u, l] = slots(&mut cut);
    run(with, cut.bytes, |b| {
        b.fill(f, &mut |host| match host {
            HostMut::F32(x) => {
                assert_eq!(x.len(), 12);
                x.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
                Ok(())
            }
            _ => Err(Error::Unsupported("another type")),
        })
        .expect("numbers");
        b.fill(u, &mut |host| match host {
            HostMut::U8(x) => {
                x.fill(7);
                Ok(())
            }
            _ => Err(Error::Unsupported("another type")),
        })
        .expect("bytes");
        b.fill(l, &mut |host| match host {
            HostMut::U16(x) => {
                x.fill(300);
                Ok(())
            }
            _ => Err(Error::Unsupported("another type")),
        })
        .expect("labels");
        assert_eq!(read(b, f)[11], 11.0);
        let (mut bytes, mut labels) = ([0; 15], [0; 7]);
        b.read(u, HostMut::U8(&mut bytes)).expect("bytes");
        b.read(l, HostMut::U16(&mut labels)).expect("labels");
        assert_eq!((bytes, labels), ([7; 15], [300; 7]));
        // The filler's error comes back.
        let refused = Error::Unsupported("what the filler says");
        assert_eq!(b.fill(f, &mut |_| Err(refused)), Err(refused));
    });
}

/// Zeros, and no more than asked for.
pub fn zero(with: With) {
    let mut cut = Cut::default();
    let [f, u, _] = slots(&mut cut);
    run(with, cut.bytes, |b| {
        write(b, f, &[3.0; 12]);
        b.write(u, Host::U8(&[5; 15])).expect("bytes");
        b.zero(f.head(1)).expect("the slot is there");
        assert_eq!(read(b, f), [[0.0; 6], [3.0; 6]].concat());
        b.zero(f).expect("the slot is there");
        assert_eq!(read(b, f), [0.0; 12]);
        let mut bytes = [0; 15];
        b.read(u, HostMut::U8(&mut bytes)).expect("bytes");
        assert_eq!(bytes, [5; 15]);
        b.zero(Slot::EMPTY).expect("nothing to do");
    });
}

/// A slot becomes another.
pub fn copy(with: With) {
    let mut cut = Cut::default();
    let from = cut.slot(Shape::new(2, 1, 2, 3), Dtype::F32);
    let to = cut.slot(Shape::new(2, 1, 2, 3), Dtype::F32);
    let raw = cut.slot(Shape::rows(2, 5), Dtype::U8);
    let other = cut.slot(Shape::rows(2, 5), Dtype::U8);
    run(with, cut.bytes, |b| {
        let x = values(3, 12);
        write(b, from, &x);
        b.copy(from, to).expect("alike");
        assert_eq!((read(b, from), read(b, to)), (x.clone(), x.clone()));
        b.copy(from.samples(1, 1), to.samples(0, 1)).expect("alike");
        assert_eq!(read(b, to), [&x[6..], &x[6..]].concat());
        b.write(raw, Host::U8(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])).expect("bytes");
        b.copy(raw, other).expect("alike");
        let mut bytes = [0; 10];
        b.read(other, HostMut::U8(&mut bytes)).expect("bytes");
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    });
}

/// A normalisation with other numbers for each channel.
const NORM: Normalisation =
    Normalisation { mean: [0.1, 0.4, 0.7, 0.9], std: [0.5, 0.25, 2.0, 1.0] };

fn expected(shape: Shape, raw: &[f64], scale: f64) -> Vec<f64> {
    let plane = shape.plane() as usize;
    raw.iter()
        .enumerate()
        .map(|(i, raw)| {
            let c = i / plane % shape.c as usize;
            let entry = if shape.c <= 4 { c } else { 0 };
            (raw / scale - f64::from(NORM.mean[entry])) / f64::from(NORM.std[entry])
        })
        .collect()
}

const IMAGES: [Shape; 4] = [
    Shape::new(1, 1, 1, 1),
    Shape::new(3, 1, 5, 7),
    Shape::new(2, 3, 4, 4),
    Shape::new(2, 5, 3, 1),
];

/// Bytes become numbers.
pub fn widen_bytes(with: With) {
    for shape in IMAGES {
        let mut cut = Cut::default();
        let (raw, x) = (cut.slot(shape, Dtype::U8), cut.slot(shape, Dtype::F32));
        run(with, cut.bytes, |b| {
            let bytes: Vec<u8> = (0..len(shape)).map(|i| (i * 37 % 256) as u8).collect();
            b.write(raw, Host::U8(&bytes)).expect("bytes");
            b.widen(raw, &NORM, x).expect("a batch");
            let bytes: Vec<f64> = bytes.iter().copied().map(f64::from).collect();
            Tolerance::ELEMENT.check("bytes", &read(b, x), &expected(shape, &bytes, 255.0));
        });
    }
}

/// Numbers are scaled, elsewhere or where they are.
pub fn widen_numbers(with: With) {
    for shape in IMAGES {
        let mut cut = Cut::default();
        let (raw, x) = (cut.slot(shape, Dtype::F32), cut.slot(shape, Dtype::F32));
        run(with, cut.bytes, |b| {
            let numbers = values(4, len(shape));
            let expected = expected(shape, &wide(&numbers), 1.0);
            write(b, raw, &numbers);
            b.widen(raw, &NORM, x).expect("a batch");
            assert_eq!(read(b, raw), numbers, "the raw samples stay");
            Tolerance::ELEMENT.check("elsewhere", &read(b, x), &expected);
            b.widen(raw, &NORM, raw).expect("a batch");
            Tolerance::ELEMENT.check("in place", &read(b, raw), &expected);
        });
    }
}

/// Some updates by each rule; what lies beside parameters and state stays as it is.
pub fn update(with: With) {
    const RULES: [Rule; 6] = [
        Rule::sgd(),
        Rule::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.1 },
        Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        Rule::adam(),
        Rule::adamw(0.1),
    ];
    let layers = [Layer::Conv2d(Conv2d::new(3, 3)), Layer::Dense(Dense { units: 5, bias: true })];
    let chain = Chain::new(&layers);
    for rule in RULES {
        let params = plan::Params::new(0, chain, Shape::new(1, 1, 4, 4), rule.slots());
        let params = params.expect("small");
        let slots = [params.trained(), params.gradients(), params.state(0), params.state(1)];
        let n = len(slots[0].shape);
        run(with, params.bytes(), |b| {
            let p = values(5, n);
            write(b, params.trained(), &p);
            for state in &slots[2..] {
                b.zero(*state).expect("the slot is there");
            }
            let (mut p, mut first, mut second) = (wide(&p), vec![0.0; n], vec![0.0; n]);
            let used = rule.slots();
            for update in 1..=4 {
                let g = values(6 + u64::from(update), n);
                write(b, params.gradients(), &g);
                b.update(&rule, 0.05, update, params).expect("the update runs");
                assert_eq!(read(b, params.gradients()), g, "gradients are read only");
                let first = if used > 0 { &mut first[..] } else { &mut [] };
                let second = if used > 1 { &mut second[..] } else { &mut [] };
                let rate = f64::from(0.05f32);
                rule.update(rate, update, &mut p, &wide(&g), first, second);
            }
            let what = format!("{rule:?}");
            Tolerance::SUM.check(&what, &read(b, params.trained()), &p);
            for (slot, expected) in slots[2..].iter().zip([&first, &second]).take(used) {
                Tolerance::SUM.check(&format!("{what}: state"), &read(b, *slot), expected);
            }
        });
    }
}

/// Another type than the slot's is refused.
pub fn wrong_type(with: With) {
    let mut cut = Cut::default();
    let [f, u, l] = slots(&mut cut);
    run(with, cut.bytes, |b| {
        let dtype = |slot, asked| Err(Error::Arena(ArenaError::Dtype { slot, asked }));
        assert_eq!(b.write(f, Host::U8(&[0; 12])), dtype(Dtype::F32, Dtype::U8));
        assert_eq!(b.write(u, Host::F32(&[0.0; 15])), dtype(Dtype::U8, Dtype::F32));
        assert_eq!(b.write(l, Host::F32(&[0.0; 7])), dtype(Dtype::U16, Dtype::F32));
        assert_eq!(b.read(f, HostMut::U16(&mut [0; 12])), dtype(Dtype::F32, Dtype::U16));
        assert_eq!(b.read(u, HostMut::F32(&mut [0.0; 15])), dtype(Dtype::U8, Dtype::F32));
        let pairs = &mut [sepal_core::neighbour::Pair::NONE; 12];
        assert_eq!(b.read(f, HostMut::Pair(pairs)), dtype(Dtype::F32, Dtype::Pair));
        assert!(b.copy(f, u).is_err(), "slots of other types");
    });
}

/// Host memory of another length is refused, with both lengths.
pub fn wrong_length(with: With) {
    let mut cut = Cut::default();
    let [f, u, _] = slots(&mut cut);
    run(with, cut.bytes, |b| {
        let length = |slot, host| Err(Error::Arena(ArenaError::Length { slot, host }));
        assert_eq!(b.write(f, Host::F32(&[0.0; 11])), length(12, 11));
        assert_eq!(b.write(f, Host::F32(&[0.0; 13])), length(12, 13));
        assert_eq!(b.write(u, Host::U8(&[])), length(15, 0));
        assert_eq!(b.read(f, HostMut::F32(&mut [0.0; 3])), length(12, 3));
        assert_eq!(b.read(u, HostMut::U8(&mut [0; 16])), length(15, 16));
        assert!(b.copy(f.head(1), f.samples(1, 1)).is_ok(), "alike and apart");
        let (one, two) = (Slot::vector(0, 4, Dtype::F32), Slot::vector(16, 5, Dtype::F32));
        assert!(b.copy(one, two).is_err(), "slots of other lengths");
    });
}

/// Slots past the end are refused, with what would be needed.
pub fn past_the_end(with: With) {
    run(with, 32, |b| {
        assert_eq!(b.bytes(), 32);
        let slot = Slot::vector(16, 8, Dtype::F32);
        let missing = Err(Error::Arena(ArenaError::OutOfMemory { needed: 48, given: 32 }));
        assert_eq!(b.write(slot, Host::F32(&[0.0; 8])), missing);
        assert_eq!(b.read(slot, HostMut::F32(&mut [0.0; 8])), missing);
        assert_eq!(b.fill(slot, &mut |_| Ok(())), missing);
        assert_eq!(b.zero(slot), missing);
        assert_eq!(b.copy(Slot::vector(0, 8, Dtype::F32), slot), missing);
        let far = Slot { at: usize::MAX - 15, ..slot };
        assert!(b.zero(far).is_err(), "a slot past the address space");
    });
}

/// Slots that overlap are not copied.
pub fn overlap(with: With) {
    run(with, 64, |b| {
        let (from, to) = (Slot::vector(0, 8, Dtype::F32), Slot::vector(16, 8, Dtype::F32));
        assert_eq!(b.copy(from, to), Err(Error::Arena(ArenaError::Overlap)));
    });
}
