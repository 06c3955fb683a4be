//! Event files, read by their format's definition: CRC-32C bit by bit, fields of messages by hand.

use std::collections::BTreeMap;

use super::*;

/// The checksum of a record, masked.
fn masked(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            // The polynomial of Castagnoli, reflected.
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

/// The fields of a message: their numbers, and their bytes or those of their number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let len = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (field, rest) = bytes.split_at(len);
        found.push((key >> 3, field.to_vec()));
        bytes = rest;
    }
    found
}

/// The points of each tag in the one event file of a folder.
fn scalars(folder: &Path) -> BTreeMap<String, Vec<(u64, f32)>> {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    assert!(file.file_name().to_str().unwrap().starts_with("events.out.tfevents."));
    let bytes = std::fs::read(file.path()).unwrap();
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let (mut rest, mut at) = (&bytes[..], 0);
    while !rest.is_empty() {
        let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(word(&rest[8..]), masked(&rest[..8]));
        let event = &rest[12..12 + len];
        assert_eq!(word(&rest[12 + len..]), masked(event));
        rest = &rest[16 + len..];
        let event = fields(event);
        let field = |number| event.iter().find(|field| field.0 == number).map(|field| &field.1[..]);
        let time = f64::from_le_bytes(field(1).unwrap().try_into().unwrap());
        assert!(time > 1.6e9, "{time}");
        if at == 0 {
            assert_eq!(field(3), Some(&b"brain.Event:2"[..]));
        } else {
            // A step of 0 is not written.
            let step = field(2).map_or(0, |step| u64::from_le_bytes(step.try_into().unwrap()));
            for (_, value) in fields(field(5).unwrap()) {
                let value = fields(&value);
                let tag = String::from_utf8(value[0].1.clone()).unwrap();
                let number = value.get(1).map_or(0.0, |value| f32::from_bits(word(&value.1)));
                found.entry(tag).or_default().push((step, number));
            }
        }
        at += 1;
    }
    found
}

#[test]
fn training_is_shown_in_tensorboard() {
    let folder = Folder::new("board");
    let to = folder.path("runs/one");
    let save = folder.path("model.sepal");
    let more = ["--epochs", "2", "--patience", "5", "--json", "--tensorboard", &to];
    let more = [&more[..], &["--save", &save]].concat();
    let args = ["--images", "256", "--head-epochs", "3", "--no-control"];
    let out = run("train", &[&args[..], &more].concat()).good();
    let shown = scalars(to.as_ref());
    let tags: Vec<&str> = shown.keys().map(String::as_str).collect();
    let expected = [
        "accuracy/head",
        "accuracy/linear",
        "accuracy/nearest",
        "block 1/held-out si",
        "block 1/loss",
        "block 1/rate",
        "block 1/si",
        "block 2/held-out si",
        "block 2/loss",
        "block 2/rate",
        "block 2/si",
        "classifier/accuracy",
        "classifier/loss",
        "classifier/rate",
        "si/cross",
        "si/train",
    ];
    assert_eq!(tags, expected);
    let steps = |tag: &str| shown[tag].iter().map(|point| point.0).collect::<Vec<_>>();
    assert_eq!((steps("block 1/loss"), steps("classifier/loss")), (vec![1, 2], vec![1, 2, 3]));
    // Held-out SI: of the last tenth of the images, among the others.
    let model = Loaded::open(Path::new(&save)).unwrap();
    let all = data::bundled().train;
    let [bank, held_out] = [(0..231), (231..256)].map(|images| {
        let images = all.subset(&images.collect::<Vec<_>>()).unwrap();
        let end = LENET.features_end();
        Features::new(&OnReference, &model.model(), &mut &images, end).unwrap().unit()
    });
    let si = held_out.cross_si(&OnReference, &bank).unwrap().value().unwrap();
    assert_eq!(f64::from(shown["block 2/held-out si"].last().unwrap().1), f64::from(si as f32));
    // The numbers of the program's own lines.
    let events: Vec<Value> = out.lines().map(json).collect();
    let of = |event: &str| events.iter().filter(move |e| e["event"] == *event).collect::<Vec<_>>();
    let last = |tag: &str| f64::from(shown[tag].last().unwrap().1);
    for (stage, name) in of("stage_done").iter().zip(["block 1", "block 2", "classifier"]) {
        let score = if name == "classifier" { "accuracy" } else { "si" };
        let near = |tag: &str, field: &str| {
            let apart = last(&format!("{name}/{tag}")) - stage[field].as_f64().unwrap();
            assert!(apart.abs() < 1e-6, "{name} {tag}: {apart}");
        };
        near("loss", "loss");
        near(score, "score");
    }
    for (block, row) in of("block").iter().enumerate() {
        for (tag, field) in [("si/train", "si_train"), ("si/cross", "cross_si")] {
            let (step, si) = shown[tag][block];
            assert_eq!((step, Some(si)), (block as u64, row[field].as_f64().map(|si| si as f32)));
        }
    }
    let accuracy = of("accuracy")[0];
    for name in ["head", "linear", "nearest"] {
        let found = shown[&format!("accuracy/{name}")][..].to_vec();
        assert_eq!(found, [(0, accuracy[name].as_f64().unwrap() as f32)]);
    }

    let taken = folder.file("taken", b"");
    run("train", &[&SHORT[..], &["--tensorboard", &taken]].concat()).refused(&["taken"]);
}

#[test]
fn stages_of_other_strategies_have_names_of_their_own() {
    let folder = Folder::new("names");
    let tags = |name: &str, args: &[&str]| {
        let to = folder.path(name);
        let few = ["--images", "256", "--epochs", "1", "--head-epochs", "1", "--batch", "64"];
        let rest = ["--no-control", "--tensorboard", &to];
        run("train", &[&few[..], args, &rest].concat());
        let shown = scalars(to.as_ref());
        let stages = shown.keys().filter_map(|tag| tag.strip_suffix("/loss").map(str::to_owned));
        stages.collect::<Vec<_>>()
    };
    assert_eq!(tags("end", &["--strategy", "end-to-end"]), ["net"]);
    let layers = tags("layers", &["--strategy", "si-layerwise"]);
    assert_eq!(layers, ["block 1", "block 2", "block 3", "block 4", "classifier"]);
    let backward = tags("backward", &["--strategy", "forward-backward"]);
    assert_eq!(backward, ["block 1", "blocks 2-5"]);
    assert_eq!(tags("windows", &["--window", "2"]), ["blocks 1-2", "classifier"]);
    assert_eq!(tags("local", &["--strategy", "local-losses"]), ["blocks 1-2", "classifier"]);
}

#[test]
fn each_cell_is_a_run_of_its_own() {
    let folder = Folder::new("cells");
    folder.idx("data/fashion-mnist", 260, 28, 10);
    let (data, out, to) = (folder.path("data"), folder.path("out"), folder.path("runs"));
    let args = ["--data", &data, "--out", &out, "--cell", "fashion-mnist/lenet/si"];
    let few = ["--width", "10", "--epochs", "1", "--head-epochs", "1", "--seeds", "3,4"];
    run("reproduce", &[&args[..], &few, &["--tensorboard", &to]].concat()).good();
    let mut runs: Vec<_> = std::fs::read_dir(&to).unwrap().map(|run| run.unwrap().path()).collect();
    runs.sort();
    assert_eq!(runs.len(), 2);
    for (path, seed) in runs.iter().zip([3, 4]) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("fashion-mnist-lenet-si-{seed}-")), "{name}");
        let shown = scalars(path);
        assert!(shown.contains_key("block 2/si") && shown["si/train"].len() == 3, "{shown:?}");
    }
}
