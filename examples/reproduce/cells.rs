//! The cells of the paper's tables.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use sepal::models::architecture::Architecture;
use sepal::models::data::{Color, DataError, Images, Options, Split, open_with};
use sepal::models::learning::{Learning, Optimiser, Readout, Way};
use sepal::stage::Loss;
use sepal::strategy::Window;
use serde::{Deserialize, Serialize};

use crate::args::Args;

/// A data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name and its folder.
    pub name: &'static str,
    pub folder: &'static str,
    /// As people write it.
    pub title: &'static str,
    pub text: bool,
}

const fn set(name: &'static str, folder: &'static str, title: &'static str, text: bool) -> Set {
    Set { name, folder, title, text }
}

const CIFAR10: Set = set("cifar-10", "cifar-10", "CIFAR-10", false);
const CIFAR100: Set = set("cifar-100", "cifar-100", "CIFAR-100", false);
const FASHION: Set = set("fashion-mnist", "fashion-mnist", "Fashion-MNIST", false);
/// The paper's blood cells, which are to be had by hand only, and those that stand in for them.
const RAABIN: Set = set("raabin", "wbc/raabin", "Raabin-WBC", false);
const WBC: Set = set("wbc", "wbc/chula", "WBC (chula)", false);
const NEWS: Set = set("ag-news", "ag-news", "AG's News", true);
const DBPEDIA: Set = set("dbpedia", "dbpedia", "DBPedia", true);

/// All sets.
pub const SETS: [Set; 7] = [CIFAR10, CIFAR100, FASHION, RAABIN, WBC, NEWS, DBPEDIA];

impl Set {
    /// The set of this name.
    pub fn named(name: &str) -> Option<Self> {
        SETS.into_iter().find(|set| set.name == name)
    }

    /// Where it lies.
    pub fn path(self, root: &Path) -> PathBuf {
        root.join(self.folder)
    }

    /// Reads it. Images of class folders are resized to 32x32, those of CIFAR.
    pub fn open(self, root: &Path) -> Result<Split, DataError> {
        let images = Images { size: Some((32, 32)), color: Color::Rgb };
        open_with(self.path(root), Options { images, ..Options::default() })
    }
}

/// A way to learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strategy {
    /// Its name.
    pub name: &'static str,
    /// As people write it.
    pub title: &'static str,
    way: Way,
    optimiser: Optimiser,
    loss: Loss,
    /// What is laid over a block.
    readout: Readout,
    /// Which blocks learn together.
    window: Window,
}

impl Strategy {
    const SI: Self = Self {
        name: "si",
        title: "forward SI",
        way: Way::Si,
        optimiser: Optimiser::Adam,
        loss: Loss::SoftNearest { temperature: 0.05 },
        readout: Readout::Unit,
        window: Window::ONE,
    };
    /// By the paper's own loss.
    const TRIPLET: Self =
        Self { name: "si-triplet", title: "forward SI by Eq. 7", loss: Loss::Triplet, ..Self::SI };
    const WINDOWS: Self = Self {
        name: "windows",
        title: "forward SI, windows of 3 blocks",
        window: Window::sliding(3),
        ..Self::SI
    };
    /// By means of labels, behind a convolution that is discarded.
    const CENTRE: Self = Self {
        name: "centre",
        title: "forward SI by centres",
        loss: Loss::SoftCentre { temperature: 0.05 },
        readout: Readout::Conv,
        ..Self::SI
    };
    const CENTRE_GROUPS: Self = Self {
        name: "centre-groups",
        title: "forward SI by centres, groups of 3 blocks",
        window: Window::groups(3),
        ..Self::CENTRE
    };
    const FORWARD_BACKWARD: Self =
        Self::by("forward-backward", "forward-backward", Way::ForwardBackward);
    const GREEDY: Self = Self::by("greedy", "greedy layer-wise", Way::Greedy);
    const PRED_SIM: Self = Self::by("pred-sim", "local losses, predsim", Way::PredSim);
    const SGD: Self = Self {
        optimiser: Optimiser::Sgd,
        ..Self::by("end-to-end-sgd", "end to end, SGD", Way::EndToEnd)
    };
    const ADAM: Self = Self::by("end-to-end-adam", "end to end, Adam", Way::EndToEnd);
    const END_TO_END: Self = Self::by("end-to-end", "end to end", Way::EndToEnd);
    const RANDOM: Self = Self::by("random", "random frozen (control)", Way::Random);

    const fn by(name: &'static str, title: &'static str, way: Way) -> Self {
        Self { name, title, way, ..Self::SI }
    }
}

/// All ways to learn, in the order of a plot's legend.
pub const STRATEGIES: [Strategy; 12] = [
    Strategy::SI,
    Strategy::TRIPLET,
    Strategy::WINDOWS,
    Strategy::CENTRE,
    Strategy::CENTRE_GROUPS,
    Strategy::FORWARD_BACKWARD,
    Strategy::GREEDY,
    Strategy::PRED_SIM,
    Strategy::SGD,
    Strategy::ADAM,
    Strategy::END_TO_END,
    Strategy::RANDOM,
];

/// How large a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// At most so many samples; null for all.
    pub images: Option<u32>,
    pub test_images: Option<u32>,
    pub width: u32,
    pub epochs: u16,
    pub end_epochs: u16,
    pub head_epochs: u16,
    pub batch: u32,
    /// Whether everything is trained by SGD, as the paper's text nets are.
    pub sgd: bool,
    /// First rates of what learns end to end, by Adam and by SGD.
    #[serde(default = "Scale::rates")]
    pub end_rates: [f32; 2],
    /// Weight decay of all that learns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
    /// Steps in which a rate rises to its first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<u32>,
    /// Bytes for what frozen blocks give.
    pub memory: u64,
}

impl Scale {
    /// The paper's, for both.
    const fn rates() -> [f32; 2] {
        [0.01; 2]
    }

    /// What the command line asks for, for images or for text.
    pub fn new(args: &Args, text: bool) -> Self {
        let full = args.paper;
        // Passes a block, end to end, of the classifier. The paper says nothing of the last: it is
        // a layer as others are.
        let (epochs, end, head) = match (full, text) {
            (true, true) => (3, 15, 3),
            (true, false) => (10, 200, 10),
            (false, _) => (3, 6, 10),
        };
        let reduced = |n| (!full).then_some(n);
        let [adam, sgd] = Self::rates();
        Self {
            images: args.images.or(reduced(5_000)),
            test_images: args.test_images.or(reduced(2_000)),
            width: args.width.unwrap_or(if full { 100 } else { 25 }),
            epochs: args.epochs.unwrap_or(epochs),
            end_epochs: args.end_epochs.unwrap_or(end),
            head_epochs: args.head_epochs.unwrap_or(head),
            batch: if full && text { 2048 } else { 128 },
            sgd: full && text,
            end_rates: [args.adam_rate.unwrap_or(adam), args.sgd_rate.unwrap_or(sgd)],
            weight_decay: args.weight_decay,
            warmup: args.warmup,
            memory: args.memory.as_u64(),
        }
    }
}

impl std::fmt::Display for Scale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let most = |n: Option<u32>| n.map_or("all".to_owned(), |n| format!("at most {n}"));
        write!(
            f,
            "width {} %, {} training and {} test samples, {} epochs a block, {} end to end, {} of \
             the classifier, batches of {}{}",
            self.width,
            most(self.images),
            most(self.test_images),
            self.epochs,
            self.end_epochs,
            self.head_epochs,
            self.batch,
            if self.sgd { ", all by SGD" } else { "" }
        )?;
        if self.end_rates != Self::rates() {
            let [adam, sgd] = self.end_rates;
            write!(f, ", end to end from {adam} by Adam and {sgd} by SGD")?;
        }
        if let Some(decay) = self.weight_decay {
            write!(f, ", weight decay {decay}")?;
        }
        match self.warmup {
            Some(steps) => write!(f, ", {steps} steps of warm-up"),
            None => Ok(()),
        }
    }
}

/// A cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    pub table: u8,
    pub set: Set,
    pub model: Architecture,
    pub strategy: Strategy,
    /// The paper's accuracy in percent, in Table 8 its error rate.
    pub paper: Option<f64>,
    /// The paper's minutes and seconds in Table 5, as they are printed there.
    pub time: Option<&'static str>,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.set.name, name(self.model), self.strategy.name)
    }
}

/// A net as the command line names it.
pub fn name(model: Architecture) -> String {
    model.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Cell {
    /// How its net learns.
    pub fn learning(&self, scale: &Scale) -> Learning {
        let strategy = self.strategy;
        let way = strategy.way;
        let (epochs, head_epochs) = match way {
            Way::EndToEnd => (scale.end_epochs, scale.head_epochs),
            Way::ForwardBackward => (scale.epochs, scale.end_epochs),
            _ => (scale.epochs, scale.head_epochs),
        };
        let optimiser = if scale.sgd { Optimiser::Sgd } else { strategy.optimiser };
        let [adam, sgd] = scale.end_rates;
        let rate = match (way, optimiser) {
            (Way::EndToEnd, Optimiser::Sgd) => sgd,
            (Way::EndToEnd | Way::ForwardBackward, _) => adam,
            _ => Learning::default().rate,
        };
        Learning {
            architecture: self.model,
            width: scale.width,
            way,
            rate,
            readout: strategy.readout,
            loss: strategy.loss,
            window: strategy.window,
            epochs,
            head_epochs,
            warmup: scale.warmup.unwrap_or(0),
            optimiser,
            weight_decay: scale.weight_decay.unwrap_or(0.0),
            batch: scale.batch,
            ..Learning::default()
        }
    }

    /// Pixels of border around an image of so many rows: VGG halves it five times.
    pub fn border(&self, rows: u32) -> u32 {
        match self.model {
            Architecture::Vgg16 | Architecture::Vgg19 => 32u32.saturating_sub(rows).div_ceil(2),
            _ => 0,
        }
    }
}

const NETS: [Architecture; 4] =
    [Architecture::Vgg16, Architecture::Vgg19, Architecture::Alexnet, Architecture::Lenet];
const SIMCNN: [Architecture; 3] =
    [Architecture::Simcnn1, Architecture::Simcnn2, Architecture::Simcnn3];
const VDCNN: [Architecture; 3] =
    [Architecture::Vdcnn9, Architecture::Vdcnn17, Architecture::Vdcnn29];

const BLOOD: [[f64; 4]; 5] = [
    [98.50, 98.35, 97.56, 93.31],
    [98.03, 98.0, 97.21, 92.67],
    [93.56, 92.19, 91.97, 88.40],
    [97.83, 97.98, 96.98, 92.65],
    [97.94, 98.02, 96.49, 92.04],
];

const TABLE_3: [(Set, [[f64; 4]; 5]); 5] = [
    (
        CIFAR10,
        [
            [93.51, 93.43, 86.25, 67.47],
            [94.81, 94.76, 85.84, 67.61],
            [82.58, 81.85, 75.71, 60.98],
            [92.95, 92.52, 84.61, 67.30],
            [92.86, 92.39, 84.50, 67.12],
        ],
    ),
    (
        CIFAR100,
        [
            [72.13, 72.49, 62.43, 53.59],
            [71.74, 71.55, 62.45, 52.87],
            [62.81, 62.36, 55.71, 47.10],
            [70.98, 71.23, 62.22, 52.91],
            [70.36, 71.09, 62.05, 52.36],
        ],
    ),
    (
        FASHION,
        [
            [95.04, 95.21, 92.89, 73.16],
            [94.73, 95.06, 92.65, 72.98],
            [85.33, 85.74, 82.87, 66.55],
            [94.17, 94.61, 92.53, 72.19],
            [93.14, 93.43, 92.20, 71.76],
        ],
    ),
    (RAABIN, BLOOD),
    (WBC, BLOOD),
];

const TABLE_5: [[&str; 4]; 5] = [
    ["102:48", "129:17", "52:19", "16:35"],
    ["127:44", "138:48", "62:96", "31:83"],
    ["124:49", "133:26", "57:56", "20:42"],
    ["139:43", "149:58", "68:28", "32:38"],
    ["144:57", "148:45", "69:12", "34:20"],
];

const TABLE_4: [[f64; 3]; 2] = [[89.2, 91.3, 93.0], [88.3, 90.4, 91.7]];

const TABLE_8: [(Set, [[f64; 3]; 4]); 2] = [
    (NEWS, [[9.35, 8.71, 8.72], [9.61, 9.19, 10.61], [13.67, 12.99, 11.44], [10.17, 9.24, 9.30]]),
    (DBPEDIA, [[1.53, 1.30, 1.23], [1.67, 1.44, 1.46], [2.83, 2.19, 2.32], [1.64, 1.42, 1.36]]),
];

/// The ways of a table, and in which of its rows the paper's value stands, where the paper has one.
type Ways<const N: usize> = [(Strategy, Option<usize>); N];
/// Behind the paper's: ours, the best published local losses, and the control.
const WAYS_3: Ways<11> = [
    (Strategy::SI, Some(0)),
    (Strategy::TRIPLET, Some(0)),
    (Strategy::FORWARD_BACKWARD, Some(1)),
    (Strategy::GREEDY, Some(2)),
    (Strategy::SGD, Some(3)),
    (Strategy::ADAM, Some(4)),
    (Strategy::WINDOWS, None),
    (Strategy::CENTRE, None),
    (Strategy::CENTRE_GROUPS, None),
    (Strategy::PRED_SIM, None),
    (Strategy::RANDOM, None),
];
const WAYS_4: Ways<4> = [
    (Strategy::SI, Some(0)),
    (Strategy::TRIPLET, Some(0)),
    (Strategy::GREEDY, Some(1)),
    (Strategy::RANDOM, None),
];
const WAYS_8: Ways<6> = [
    (Strategy::SI, Some(0)),
    (Strategy::TRIPLET, Some(0)),
    (Strategy::FORWARD_BACKWARD, Some(1)),
    (Strategy::GREEDY, Some(2)),
    (Strategy::END_TO_END, Some(3)),
    (Strategy::RANDOM, None),
];

/// The cells of all tables. Those of Table 5 are cells of Table 3.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (set, values) in TABLE_3 {
        for (column, &model) in NETS.iter().enumerate() {
            cells.extend(WAYS_3.map(|(strategy, row)| {
                let paper = row.map(|row| values[row][column]);
                let time = row.filter(|_| set == CIFAR10).map(|row| TABLE_5[row][column]);
                Cell { table: 3, set, model, strategy, paper, time }
            }));
        }
    }
    for (column, &model) in SIMCNN.iter().enumerate() {
        cells.extend(WAYS_4.map(|(strategy, row)| {
            let paper = row.map(|row| TABLE_4[row][column]);
            Cell { table: 4, set: CIFAR10, model, strategy, paper, time: None }
        }));
    }
    for (set, values) in TABLE_8 {
        for (column, &model) in VDCNN.iter().enumerate() {
            cells.extend(WAYS_8.map(|(strategy, row)| {
                let paper = row.map(|row| values[row][column]);
                Cell { table: 8, set, model, strategy, paper, time: None }
            }));
        }
    }
    cells
}

/// The cells that the command line asks for.
pub fn chosen(args: &Args) -> Result<Vec<Cell>, String> {
    let mut cells = all();
    let named: Vec<[&str; 3]> =
        args.cell.iter().map(|name| parts(name)).collect::<Result<_, _>>()?;
    if !args.table.is_empty() {
        cells.retain(|cell| {
            let timed = cell.time.is_some() && args.table.contains(&5);
            timed || args.table.contains(&cell.table)
        });
    }
    // Few have this set: who does not name it has no use for its failures.
    if !args.list && named.iter().all(|parts| parts[0] != RAABIN.name) {
        cells.retain(|cell| cell.set != RAABIN);
    }
    if !named.is_empty() {
        cells.retain(|cell| {
            let model = name(cell.model);
            let own = [cell.set.name, &model, cell.strategy.name];
            named
                .iter()
                .any(|parts| parts.iter().zip(own).all(|(part, own)| *part == "*" || *part == own))
        });
        if cells.is_empty() {
            let names = args.cell.join(", ");
            return Err(format!("--cell {names}: no cell of these tables, see --list"));
        }
    }
    Ok(cells)
}

/// The three parts of a cell's name, each known.
fn parts(text: &str) -> Result<[&str; 3], String> {
    let parts: Vec<&str> = text.split('/').collect();
    let Ok(parts) = <[&str; 3]>::try_from(parts) else {
        return Err(format!("--cell {text}: expected DATA/MODEL/STRATEGY"));
    };
    let cells = all();
    let known = [
        ("data set", SETS.map(|set| set.name.to_owned()).to_vec()),
        ("net", {
            let mut names: Vec<String> = cells.iter().map(|cell| name(cell.model)).collect();
            names.sort();
            names.dedup();
            names
        }),
        ("strategy", STRATEGIES.map(|s| s.name.to_owned()).to_vec()),
    ];
    for (part, (what, names)) in parts.iter().zip(known) {
        if *part != "*" && !names.iter().any(|name| name == part) {
            let names = names.join(", ");
            return Err(format!("--cell {text}: no {what} `{part}`, expected * or one of {names}"));
        }
    }
    Ok(parts)
}
