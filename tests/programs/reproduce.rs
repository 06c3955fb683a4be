//! The program that runs the paper's cells.

use std::time::{Duration, Instant};

use sepal::rng::Permutation;

use super::*;

/// A root of data sets with one of them: ten classes of 28x28 images.
fn root(folder: &Folder) -> String {
    folder.idx("data/fashion-mnist", 260, 28, 10);
    folder.path("data")
}

/// The options of a run that takes seconds.
const TINY: [&str; 10] =
    ["--width", "10", "--epochs", "1", "--end-epochs", "1", "--head-epochs", "1", "--seeds", "3"];

fn records(out: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(Path::new(out).join("results.jsonl")).unwrap();
    assert!(text.ends_with('\n'), "{text}");
    text.lines().map(json).collect()
}

#[test]
fn cells_are_listed_with_the_papers_values() {
    let list = |args: &[&str]| run("reproduce", &[&["--list"][..], args].concat()).good();
    let lines = |text: &str| text.lines().count();
    // Five sets, four nets, the paper's five ways, its first one by the paper's loss too, four others, the
    // control; SimCNN by three and the control; two sets, three nets, five ways and the control.
    assert_eq!(lines(&list(&[])), 220 + 12 + 36);
    assert_eq!(lines(&list(&["--table", "3"])), 220);
    assert_eq!(lines(&list(&["--table", "5"])), 24);
    assert_eq!(lines(&list(&["--table", "4", "--table", "8"])), 12 + 36);
    let values = |cell: &str| {
        let line = list(&["--cell", cell]);
        line.split_whitespace().skip(3).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(values("raabin/vgg16/si"), values("wbc/vgg16/si"));
    assert_eq!(values("dbpedia/vdcnn17/si-triplet"), values("dbpedia/vdcnn17/si"));
    let one = list(&["--cell", "cifar-10/vgg16/si"]);
    assert!(lines(&one) == 1 && one.contains("93.51") && one.contains("102:48"), "{one}");
    assert_eq!(lines(&list(&["--cell", "*/lenet/greedy"])), 5);
    // The width rounds 3.2 dimensions to 3, as it does in the net.
    let text = list(&["--table", "6", "--width", "20"]);
    let embedding = text.lines().find(|line| line.starts_with("character embedding"));
    assert_eq!(embedding.unwrap().split_whitespace().last(), Some("3"), "{text}");
    let text = list(&["--table", "6", "--paper"]);
    assert!(text.contains("2048") && text.contains("batches of 2048, all by SGD"), "{text}");
}

/// The paper's blood cells are had by hand: only who names their cells gets them, from their own folders.
#[test]
fn the_papers_blood_cells_are_there_for_who_has_them() {
    let folder = Folder::new("raabin");
    let table = run("reproduce", &["--table", "2", "--list"]).good();
    assert!(table.contains("Raabin-WBC") && table.contains("10175/4339/5"), "{table}");
    let out = folder.path("out");
    let data = folder.path("data");
    for (part, images) in [("Train", 70), ("TestA", 5)] {
        for (label, shade) in [("Basophil", 40), ("Monocyte", 160)] {
            let class = format!("{data}/wbc/raabin/{part}/{label}");
            std::fs::create_dir_all(&class).unwrap();
            for at in 0..images {
                let pixel = |x: u32, y: u32| image::Rgb([shade, (x * 9 + at) as u8, (y * 7) as u8]);
                RgbImage::from_fn(20, 20, pixel).save(format!("{class}/{at}.png")).unwrap();
            }
        }
    }
    let args = ["--data", &data, "--out", &out, "--cell"];
    let all = [&args[..], &["*/lenet/random"], &TINY].concat();
    let failed = run("reproduce", &all);
    assert!(failed.status == 1 && !failed.out.contains("raabin"), "{}{}", failed.out, failed.err);
    run("reproduce", &[&args[..], &["raabin/lenet/random"], &TINY].concat()).good();
    let found = records(&out);
    let [record] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&record["data"], &record["images"]), (&"raabin".into(), &140.into()));
    assert_eq!(record["test_images"], 10);
}

/// Texts have error rates, as in the paper.
#[test]
fn a_cell_of_texts_shows_its_error_rate() {
    let folder = Folder::new("texts");
    folder.file("data/ag-news/classes.txt", "World\nSports\n");
    for (name, lines) in [("train.csv", 140), ("test.csv", 9)] {
        let line = |at: u32| {
            let (label, word) = [(1, "peace"), (2, "goal")][at as usize % 2];
            format!("\"{label}\",\"{word} {at}\",\"said {}\"\n", word.repeat(1 + at as usize % 9))
        };
        folder.file(&format!("data/ag-news/{name}"), (0..lines).map(line).collect::<String>());
    }
    let (data, out) = (folder.path("data"), folder.path("out"));
    let args = ["--data", &data, "--out", &out, "--cell", "ag-news/vdcnn9/si-triplet"];
    let said = run("reproduce", &[&args[..], &TINY].concat()).good();
    let found = records(&out);
    let [record] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&record["table"], &record["test_images"]), (&8.into(), &9.into()));
    let error = 100.0 - 100.0 * record["head"].as_f64().unwrap();
    assert!(said.contains(&format!("error rate {error:.2} %, paper 9.35")), "{said}");
    let page = std::fs::read_to_string(folder.0.join("out/results.md")).unwrap();
    assert!(page.contains(&format!("| 9.35 | {error:.2} (1) |")), "{page}");
}

/// The paper's argument below its Table 5 is about the time of each layer.
#[test]
fn a_timed_cell_shows_what_each_stage_took() {
    let folder = Folder::new("timed");
    let row =
        |at: u32| [vec![(at % 10) as u8], (0..3072).map(|i| (i * 7 + at * 31) as u8).collect()];
    let rows: Vec<u8> = (0..30).flat_map(|at| row(at).concat()).collect();
    for part in 1..=5 {
        folder.file(&format!("data/cifar-10/data_batch_{part}.bin"), &rows);
    }
    folder.file("data/cifar-10/test_batch.bin", &rows);
    let (data, out) = (folder.path("data"), folder.path("out"));
    let args = ["--data", &data, "--out", &out, "--cell", "cifar-10/lenet/si"];
    let long = ["--width", "400", "--epochs", "2", "--head-epochs", "1", "--seeds", "3"];
    run("reproduce", &[&args[..], &long].concat()).good();
    let found = records(&out);
    let stages = found[0]["stages"].as_array().unwrap();
    let pass =
        |stage: &Value| stage["cpu_seconds"].as_f64().unwrap() / stage["epochs"].as_f64().unwrap();
    let each: Vec<String> = stages.iter().map(|stage| format!("{:.2}", pass(stage))).collect();
    assert_ne!(each[0], "0.00", "too short to say anything");
    let page = std::fs::read_to_string(folder.0.join("out/results.md")).unwrap();
    let table = &page[page.find("## Table 5").unwrap()..];
    let row = table.lines().find(|line| line.contains("| 16:35 |")).unwrap();
    assert_eq!(row.split(" | ").nth(4), Some(&*each.join(", ")), "{row}");
    assert_eq!(each.len(), 3);
}

#[test]
fn a_cell_is_run_once() {
    let folder = Folder::new("cell");
    let (data, out) = (root(&folder), folder.path("out"));
    let args = ["--data", &data, "--out", &out, "--cell", "fashion-mnist/lenet/si"];
    let args = [&args[..], &TINY].concat();
    let said = run("reproduce", &args).good();
    assert!(said.contains("fashion-mnist/lenet/si, seed 3") && said.contains("73.16"), "{said}");
    let found = records(&out);
    let [record] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&record["images"], &record["seed"]), (&260.into(), &3.into()));
    assert_eq!((&record["table"], &record["strategy"]), (&3.into(), &"si".into()));
    assert_eq!(record["si"].as_array().unwrap().len(), 3);
    let stages = record["stages"].as_array().unwrap();
    let sum: f64 = stages.iter().map(|stage| stage["cpu_seconds"].as_f64().unwrap()).sum();
    assert!(sum > 0.0);
    close(record["cpu_seconds"].as_f64(), Some(sum));
    let bytes = |stage: &Value, name: &str| stage[name].as_u64().unwrap();
    let largest = stages.iter().map(|s| bytes(s, "arena_bytes") + bytes(s, "cached_bytes"));
    let weights = 4 * record["parameters"].as_u64().unwrap();
    assert_eq!(record["peak_bytes"].as_u64(), Some(largest.max().unwrap() + weights));
    let page = std::fs::read_to_string(folder.0.join("out/results.md")).unwrap();
    let head = format!("{:.2} (1)", record["head"].as_f64().unwrap() * 100.0);
    let parameters = format!("| {} |\n", record["parameters"]);
    for word in ["| 73.16 |", "Fashion-MNIST, lenet, forward SI", "--width 10", &head, &parameters]
    {
        assert!(page.contains(word), "`{word}` is not in: {page}");
    }
    for name in ["si-per-block.svg", "accuracy-cpu.svg", "accuracy-memory.svg"] {
        let plot = std::fs::read_to_string(folder.0.join("out").join(name)).unwrap();
        assert!(plot.starts_with("<svg") && plot.contains("Fashion-MNIST, lenet"), "{name}");
    }
    let page = std::fs::read_to_string(folder.0.join("out/results.html")).unwrap();
    assert!(page.contains("<td>Fashion-MNIST, lenet, forward SI</td>"), "{page}");
    assert!(page.contains(&format!("<td>{head}</td>")), "{page}");
    assert_eq!(page.matches("<svg").count(), 3);
    let left = std::fs::read_dir(&out).unwrap().count();
    assert_eq!(left, 6, "a checkpoint is left");

    assert!(run("reproduce", &args).good().contains("done before"));
    assert_eq!(records(&out).len(), 1);
    // What a killed program left of a line is taken away; another seed is another run.
    let jsonl = folder.0.join("out/results.jsonl");
    let mut text = std::fs::read_to_string(&jsonl).unwrap();
    text.push_str("{\"table\":3,");
    std::fs::write(&jsonl, text).unwrap();
    run("reproduce", &[&args[..args.len() - 1], &["3,4"]].concat()).good();
    assert_eq!(records(&out).len(), 2);
    let page = || std::fs::read_to_string(folder.0.join("out/results.md")).unwrap();
    let machine = record["machine"].as_str().unwrap();
    assert!(!machine.is_empty());
    assert!(stages.iter().all(|stage| stage["machines"] == serde_json::json!([machine])));
    assert!(page().contains("(2)") && page().contains(&format!("CPU hours on {machine}.")));
    // Seconds of two machines stand apart, on the page and in the plot.
    let text = std::fs::read_to_string(&jsonl).unwrap();
    let (first, second) = text.split_at(text.find('\n').unwrap() + 1);
    let named = |name: &str| format!("\"machine\":\"{name}\"");
    let second = second.replace(&named(machine), &named("another"));
    std::fs::write(&jsonl, format!("{first}{second}")).unwrap();
    run("reproduce", &args).good();
    let seconds = |at: usize| format!("{:.2}", records(&out)[at]["cpu_seconds"].as_f64().unwrap());
    let both = format!("| {} / {} |", seconds(0), seconds(1));
    assert!(page().contains(&both) && page().contains("CPU hours on another, whose"), "{}", page());
    let plot = std::fs::read_to_string(folder.0.join("out/accuracy-cpu.svg")).unwrap();
    assert!(plot.contains("lenet, another"), "{plot}");
    // What was written before machines were named is read too.
    let unnamed = format!("{first}{second}").replace(&format!("{},", named("another")), "");
    assert_eq!(unnamed.matches("\"machine\"").count(), 1);
    std::fs::write(&jsonl, unnamed).unwrap();
    run("reproduce", &args).good();
    assert!(page().contains("on a machine without a name"), "{}", page());
    folder.file("out/results.jsonl", "{}\n");
    run("reproduce", &args).refused(&["results.jsonl, line 1", "missing field"]);
}

#[test]
fn scales_stand_apart() {
    let folder = Folder::new("scales");
    let (data, out) = (root(&folder), folder.path("out"));
    let args = ["--data", &data, "--out", &out, "--cell", "fashion-mnist/lenet/si"];
    let file = |name: &str| std::fs::read_to_string(Path::new(&out).join(name)).unwrap();
    run("reproduce", &[&args[..], &TINY].concat()).good();
    assert!(!file("si-per-block.svg").contains("width 10 %"));
    let wide: Vec<&str> = TINY.iter().map(|&arg| if arg == "10" { "20" } else { arg }).collect();
    run("reproduce", &[&args[..], &wide].concat()).good();
    assert_eq!(file("results.md").matches("## Table 3").count(), 2);
    let decayed = [&args[..], &wide, &["--weight-decay", "0.5", "--warmup", "2"]].concat();
    run("reproduce", &decayed).good();
    assert!(file("results.md").contains(", weight decay 0.5, 2 steps of warm-up."));
    let panel = "lenet, width 20 %, weight decay 0.5, 2 steps of warm-up";
    assert!(file("si-per-block.svg").contains(panel));
    let found = records(&out);
    assert_ne!(found[1]["si"], found[2]["si"]);
    // The paper's loss is another one.
    let args = ["--data", &data, "--out", &out, "--cell", "fashion-mnist/lenet/si-triplet"];
    run("reproduce", &[&args[..], &wide].concat()).good();
    let [_, soft, _, triplet] = &records(&out)[..] else { panic!("four runs") };
    assert_eq!(triplet["strategy"], "si-triplet");
    assert_ne!(soft["si"], triplet["si"]);
    assert!(found[1]["scale"].get("warmup").is_none() && found[2]["scale"]["warmup"] == 2);
    for name in ["si-per-block.svg", "accuracy-cpu.svg", "accuracy-memory.svg"] {
        for panel in ["lenet, width 10 %", "lenet, width 20 %"] {
            assert!(file(name).contains(panel), "{name}");
        }
    }
}

/// A cell of each way of Table 3 is what `train` makes of these options.
#[test]
fn a_cell_is_what_its_options_say() {
    let folder = Folder::new("ways");
    folder.fashion("data/fashion-mnist", 260);
    let (data, out, order) = (folder.path("data"), folder.path("out"), folder.path("order"));
    let shuffled = Permutation::new(0, 0, 260);
    let places: Vec<u8> = (0..260).flat_map(|at| (shuffled.get(at) as u16).to_le_bytes()).collect();
    std::fs::write(&order, places).unwrap();
    let centre = ["--loss", "centre", "--readout", "conv", "--temperature", "0.05"];
    let ways = [
        ("si", &["--temperature", "0.05"][..]),
        ("si-triplet", &["--loss", "triplet"]),
        ("windows", &["--temperature", "0.05", "--window", "3"]),
        ("centre", &centre),
        ("centre-groups", &[&centre[..], &["--window", "3", "--stride", "3"]].concat()),
        ("forward-backward", &["--temperature", "0.05", "--strategy", "forward-backward"]),
        ("greedy", &["--strategy", "greedy"]),
        ("pred-sim", &["--strategy", "pred-sim"]),
        ("end-to-end-sgd", &["--strategy", "end-to-end", "--optimiser", "sgd"]),
        ("end-to-end-adam", &["--strategy", "end-to-end"]),
        ("random", &["--strategy", "random"]),
    ];
    let set = format!("{data}/fashion-mnist");
    let same = ["--data", &set, "--order", &order, "--model", "alexnet", "--width", "10"];
    let short = ["--epochs", "1", "--head-epochs", "1", "--seed", "3", "--no-control", "--json"];
    let mut learnt = Vec::new();
    for (way, options) in ways {
        let cell = format!("fashion-mnist/alexnet/{way}");
        let args = ["--data", &data, "--out", &out, "--cell", &cell];
        run("reproduce", &[&args[..], &TINY].concat()).good();
        let record = records(&out).pop().unwrap();
        assert_eq!(record["strategy"], way);
        let text = run("train", &[&same[..], &short, options].concat()).good();
        let events: Vec<Value> = text.lines().map(json).collect();
        let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
        let separation: Vec<_> = of("block").iter().map(|b| b["cross_si"].clone()).collect();
        let cells: Vec<_> = record["si"]
            .as_array()
            .unwrap()
            .iter()
            .map(|block| block["cross_si"].clone())
            .collect();
        assert_eq!(cells, separation, "{way}");
        for measure in ["head", "linear", "nearest"] {
            assert_eq!(record[measure], of("accuracy")[0][measure], "{way}, {measure}");
        }
        let arenas: Vec<_> = of("stage").iter().map(|stage| stage["bytes"].clone()).collect();
        let stages = record["stages"].as_array().unwrap();
        let own: Vec<_> = stages.iter().map(|stage| stage["arena_bytes"].clone()).collect();
        assert_eq!(own, arenas, "{way}");
        learnt.push((way, cells));
    }
    for (at, (way, cells)) in learnt.iter().enumerate() {
        assert!(learnt[..at].iter().all(|(_, other)| other != cells), "{way}");
    }
    let page = std::fs::read_to_string(Path::new(&out).join("results.md")).unwrap();
    assert!(page.contains("alexnet, forward SI by centres, groups of 3 blocks"), "{page}");
}

#[test]
fn vgg_takes_small_images_with_a_border() {
    let folder = Folder::new("border");
    let (data, out) = (root(&folder), folder.path("out"));
    let args = ["--data", &data, "--out", &out, "--cell", "fashion-mnist/vgg16/random"];
    run("reproduce", &[&args[..], &TINY].concat()).good();
    assert_eq!(records(&out)[0]["si"][0]["shape"], "1x32x32");
}

#[test]
fn a_killed_run_goes_on() {
    let folder = Folder::new("killed");
    let (data, out, whole) = (root(&folder), folder.path("out"), folder.path("whole"));
    let long = |out: &str| {
        let args = ["--data", &data, "--out", out, "--cell", "fashion-mnist/lenet/si"];
        let more = ["--epochs", "40", "--head-epochs", "40", "--every", "0", "--width", "10"];
        [&args[..], &more, &["--seeds", "0"]].concat().iter().map(|s| s.to_string()).collect()
    };
    let args: Vec<String> = long(&out);
    let mut child = Command::new(program("reproduce"));
    let mut child = child.args(&args).stdout(Stdio::null()).spawn().unwrap();
    let checkpoint = || {
        let entries = std::fs::read_dir(&out).ok()?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.into_iter().find(|path| path.extension().is_some_and(|e| e == "checkpoint"))
    };
    let began = Instant::now();
    while checkpoint().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "no checkpoint");
        assert!(child.try_wait().unwrap().is_none(), "over before it was killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(checkpoint().is_some(), "over before it was killed");
    let said = run("reproduce", &args).good();
    assert!(said.contains("goes on from"), "{said}");
    assert!(checkpoint().is_none());
    run("reproduce", &long(&whole)).good();
    let (resumed, straight) = (&records(&out)[0], &records(&whole)[0]);
    for field in ["head", "linear", "nearest", "si", "parameters", "peak_bytes"] {
        assert_eq!(resumed[field], straight[field], "{field}");
    }
    assert_eq!(resumed["machine"], straight["machine"]);
}

#[test]
fn a_cell_that_fails_does_not_end_the_others() {
    let folder = Folder::new("failing");
    let (data, out) = (root(&folder), folder.path("out"));
    let args = ["--data", &data, "--out", &out];
    let cells = ["--cell", "cifar-10/lenet/random", "--cell", "fashion-mnist/lenet/random"];
    let ended = run("reproduce", &[&args[..], &cells, &TINY].concat());
    has(&ended.err, "warning: ", &["cifar-10/lenet/random, seed 3", "data/cifar-10"]);
    ended.refused(&["1 of 2 runs failed"]);
    assert_eq!(records(&out)[0]["data"], "fashion-mnist");

    // A single class is told apart by any net.
    folder.idx("same/fashion-mnist", 260, 28, 1);
    let same = folder.path("same");
    let args = ["--data", &same, "--out", &out, "--cell", "fashion-mnist/lenet/greedy"];
    let ended = run("reproduce", &[&args[..], &TINY].concat());
    has(&ended.err, "warning: ", &["same/fashion-mnist", "all 260", "2 classes or more"]);
    assert_eq!(records(&out).len(), 1, "nothing is measured");

    let none = folder.path("none");
    let args = ["--data", &none, "--out", &out, "--table", "3"];
    run("reproduce", &args).refused(&[&none, "no such folder"]);
    for (cell, words) in [
        ("cifar-11/lenet/si", &["data set", "cifar-11", "cifar-10"][..]),
        ("cifar-10/lenet6/si", &["net", "lenet6", "alexnet"]),
        ("cifar-10/lenet/best", &["strategy", "best", "greedy"]),
        ("cifar-10/lenet", &["DATA/MODEL/STRATEGY"]),
        ("cifar-10/vdcnn9/si", &["no cell", "--list"]),
    ] {
        run("reproduce", &["--list", "--cell", cell]).refused(words);
    }
    assert_eq!(run::<&str>("reproduce", &[]).status, 2);
}
