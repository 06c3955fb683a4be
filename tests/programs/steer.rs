//! The program that steers nets.

use super::*;

/// A small net on few of the bundled images.
const TINY: [&str; 12] = [
    "--model",
    "lenet",
    "--images",
    "320",
    "--held-out",
    "60",
    "--bank",
    "100",
    "--epochs",
    "1",
    "--head-epochs",
    "1",
];

fn steer(what: &str, args: &[&str]) -> Ended {
    run("steer", &[&[what][..], &TINY, args].concat())
}

/// The events of a run, whose fields the help of its subcommand names.
fn events(what: &str, args: &[&str]) -> Vec<Value> {
    let out = steer(what, &[&["--json"][..], args].concat()).good();
    let help = run("steer", &[what, "--help"]).good();
    let words: BTreeSet<&str> = help.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let events: Vec<Value> = out.lines().map(json).collect();
    let mut found = BTreeSet::new();
    events.iter().for_each(|event| all_keys(event, &mut found));
    for key in found {
        assert!(words.contains(key), "steer {what} --help does not name `{key}`");
    }
    events
}

fn of<'a>(events: &'a [Value], event: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["event"] == event).collect()
}

#[test]
fn depth_is_the_best_blocks() {
    let folder = Folder::new("depth");
    let save = folder.path("grown.sepal");
    // No block adds all samples: the first is kept, the second tried.
    let args = ["--tolerance", "100", "--all", "--save", &save];
    let found = events("depth", &args);
    assert_eq!((of(&found, "raw").len(), of(&found, "block").len()), (1, 2));
    let nets = of(&found, "net");
    let named = |name: &str| nets.iter().filter(|net| net["name"] == name).count();
    assert_eq!((named("fixed"), named("grown")), (2, 1));
    for net in &nets {
        assert_eq!(net["kept"], net["depth"] == 1, "{net}");
    }
    let model = Loaded::open(Path::new(&save)).unwrap();
    assert_eq!(model.model().net.features, 1);
    let grown = nets.iter().find(|net| net["name"] == "grown").unwrap();
    let test = data::bundled().test;
    let end = model.model().net.layers.len();
    let logits = Features::new(&OnReference, &model.model(), &mut &test, end).unwrap();
    assert!((logits.accuracy() - grown["accuracy"].as_f64().unwrap()).abs() < 0.003);
    let said = steer("depth", &args[..2]).good();
    assert!(said.contains("grown to 2 of 2 blocks, kept 1"), "{said}");
}

#[test]
fn width_is_the_best_of_those_tried() {
    let args = ["--widths", "2,4", "--fixed", "50", "--tolerance", "0", "--patience", "1"];
    let found = events("width", &args);
    let blocks = of(&found, "block");
    assert_eq!(blocks.len(), 4);
    let nets = of(&found, "net");
    assert_eq!(nets.iter().map(|net| &net["name"]).collect::<Vec<_>>(), ["by SI", "50 %"]);
    for (block, kept) in nets[0]["filters"].as_array().unwrap().iter().enumerate() {
        let si = |filters: u64| {
            let tried = blocks.iter().find(|b| b["block"] == block && b["filters"] == filters);
            tried.unwrap()["held_out_si"].as_f64().unwrap()
        };
        let best = if si(4) > si(2) { 4 } else { 2 };
        assert_eq!(kept, best, "{found:?}");
    }
    assert_eq!(nets[1]["filters"].as_array().unwrap().len(), 2);
}

#[test]
fn pruned_nets_are_smaller_and_run_elsewhere() {
    let folder = Folder::new("prune");
    let save = folder.path("cut.sepal");
    let args = ["--scores", "own", "--ratios", "50", "--save", &save];
    let found = events("prune", &args);
    let rows = of(&found, "pruned");
    let scores: Vec<_> = rows.iter().map(|row| row["score"].as_str().unwrap()).collect();
    assert_eq!(scores, ["whole", "own", "narrow"]);
    let size = |row: &Value| row["parameters"].as_u64().unwrap();
    assert!(size(rows[1]) < size(rows[0]) && size(rows[1]) == size(rows[2]));
    assert!(rows[1]["macs"].as_u64() < rows[0]["macs"].as_u64());
    assert!(rows[2]["cut"].is_null() && rows[1]["cut"].is_f64());
    // The file, on the other programs.
    let said = json(&run("evaluate", &[&save, "--json"]).good());
    let trained = rows[1]["trained"].as_f64().unwrap();
    assert!((said["accuracy"].as_f64().unwrap() - trained).abs() < 0.003, "{said}");
    let said = run("inspect", &[&save]).good();
    assert!(said.contains("pruned by own, 50 %"), "{said}");
    let said = steer("prune", &["--scores", "l1,random", "--ratios", "0,100"]).good();
    assert_eq!(said.matches("\nrandom").count(), 2, "{said}");
}

#[test]
fn rankings_say_how_far_si_tells() {
    let nets = events("rank", &["--nets", "lenet,lenet5,dense"]);
    assert_eq!((of(&nets, "candidate").len(), of(&nets, "correlation").len()), (3, 3));
    for found in of(&nets, "correlation") {
        assert!(found["pearson"]["exact"] == true && found["pairs"] == 3, "{found}");
        let p = found["spearman"]["p"].as_f64().unwrap();
        assert!((1.0 / 6.0..=1.0).contains(&p), "{found}");
    }
    let folder = Folder::new("rank");
    // The test images are the training images, each its own nearest; some have another label there.
    let sets: Vec<String> = (2..5)
        .map(|classes: u32| {
            let name = classes.to_string();
            let labels = (0..240).map(|i| ((i + u32::from(i < 40 * classes)) % classes) as u8);
            let header = [0, 0, 8, 1, 0, 0, 0, 240];
            let path = folder.idx(&name, 240, 28, classes);
            let bytes: Vec<u8> = header.into_iter().chain(labels).collect();
            folder.file(&format!("{name}/t10k-labels-idx1-ubyte"), bytes);
            path
        })
        .collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let args = [&["rank", "--epochs", "1", "--head-epochs", "1", "--json"][..], &sets].concat();
    let found: Vec<Value> = run("steer", &args).good().lines().map(json).collect();
    for (set, wrong) in of(&found, "set").iter().zip([80.0, 120.0, 160.0]) {
        close(set["cross_si"].as_f64(), Some(1.0 - wrong / 240.0));
    }
    assert_eq!((of(&found, "set").len(), of(&found, "correlation").len()), (3, 2));
    run("steer", &["rank", "--nets", "lenet,dense"]).refused(&["2 to rank, expected 3 or more"]);
    run("steer", &["rank", sets[0], sets[1]]).refused(&["2 to rank, expected 3 or more"]);
}

#[test]
fn what_cannot_steer_is_refused() {
    let folder = Folder::new("steer");
    let one = folder.idx("one", 200, 28, 1);
    let none = folder.path("none");
    for what in ["depth", "width", "prune", "rank"] {
        let refused = |args: &[&str], words: &[&str]| {
            run("steer", &[&[what][..], args].concat()).refused(words);
        };
        refused(&["--data", &one], &[&one, "2 classes or more"]);
        refused(&["--data", &none], &[&none]);
        refused(&["--images", "0"], &["--images 0", "1 to 2000"]);
        refused(&["--images", "64"], &["58 training images", "128 of --batch"]);
        refused(&["--held-out", "2000"], &["--held-out 2000", "1 to 1999"]);
        refused(&["--held-out", "0"], &["--held-out 0", "1 to 1999"]);
        refused(&["--dev", "0"], &["--dev 0", "1 to 1999"]);
        // A sample alone is of one class.
        if what != "rank" {
            refused(&["--held-out", "1"], &["held out: found samples of 1 classes"]);
        }
    }
    let save = folder.path("net.sepal");
    run("steer", &["depth", "--seeds", "0,1", "--save", &save]).refused(&["--save", "--seeds"]);
    run("steer", &["prune", "--save", &save]).refused(&["--save", "--scores"]);
    steer("width", &["--widths", "4,2"]).refused(&["widths: found [4, 2]", "ascend"]);
    for (what, args) in [
        ("depth", &["--tolerance", "-1"][..]),
        ("depth", &["--tolerance", "nan"]),
        ("width", &["--widths", "0,2"]),
        ("width", &["--tolerance", "101"]),
        ("prune", &["--ratios", "-1"]),
        ("prune", &["--scores", "l2"]),
        ("rank", &["--nets", "letter"]),
        ("rank", &["set", "--dev", "5"]),
        ("depth", &["--seeds", "one"]),
    ] {
        assert_eq!(run("steer", &[&[what][..], args].concat()).status, 2, "{what} {args:?}");
    }
}
