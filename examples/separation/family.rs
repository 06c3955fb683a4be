//! The measures.

use sepal::neighbour::{Pair, Rows};
use sepal::rng::{Purpose, Rng};
use sepal::si::{self, Neighbours, Tally};

use crate::Args;
use crate::program::Failure;
use crate::read::Set;
use crate::report::{Class, Measure, Report};
use crate::search::Search;

/// The family for classes.
pub fn classes(
    args: &Args,
    set: &Set,
    test: Option<&Set>,
    search: &Search,
) -> Result<Report, Failure> {
    let (rows, k) = (set.rows(), usize::from(args.k));
    refuse_what_separates_nothing(args, set)?;
    if k >= rows.len() {
        let (file, most) = (args.features.display(), rows.len() - 1);
        return Err(format!("{file}: --k is {k}, expected 1 to {most}, the samples but one").into());
    }
    let pairs = search.pairs(rows, rows, true)?;
    let places = search.top_k(rows, k)?;
    let near = Neighbours { places: &places, k, labels: rows.labels, bank: rows.labels };
    let mut scores = vec![0; rows.len()];
    let (mut means, mut counts) = (vec![0.0; set.names.len() * set.dim], vec![0; set.names.len()]);
    si::centres(rows, &mut means, &mut counts);

    let high = format!("the {k} nearest samples all have their label");
    let soft = format!("mean share of the {k} nearest samples that have their label");
    let anti = format!("none of the {k} nearest samples has their label");
    let score =
        format!("mean run of nearest samples with their label, or minus that without, within {k}");
    let mut measures = vec![
        Measure::new("SI", si::si(&pairs), "the nearest sample has their label"),
        Measure::new("high-order SI", si::high_order(near, k), high),
        Measure::new("soft SI", si::soft(near, k), soft),
        Measure::new("anti SI", si::anti(near, k), anti),
        Measure::new("score", si::score(near, &mut scores), score),
        Measure::new(
            "centre-based SI",
            si::centre_based(rows, &means, &counts),
            "the nearest class mean is their class's",
        ),
        Measure::new(
            "triplet SI",
            si::triplet(rows, triplets(args, rows)),
            "random pairs of samples are ordered by distance as by label",
        ),
    ];
    if let Some(test) = test {
        let across = search.pairs(test.rows(), rows, false)?;
        measures.push(Measure::new(
            "cross-SI",
            si::si(&across),
            "test samples whose nearest training sample has their label",
        ));
        measures.push(Measure::new(
            "cross centre-based SI",
            si::centre_based(test.rows(), &means, &counts),
            "test samples whose nearest training class mean is their class's",
        ));
    }
    let mut tallies = vec![Tally::default(); set.names.len()];
    si::per_class(&pairs, rows.labels, &mut tallies);
    let classes = set.names.iter().zip(set.counts()).zip(tallies);
    Ok(Report {
        samples: rows.len(),
        features: set.dim,
        unpaired: Some(pairs.iter().filter(|pair| !Pair::complete(**pair)).count()),
        measures,
        classes: classes
            .map(|((name, samples), si)| Class { name: name.clone(), samples, si })
            .collect(),
    })
}

/// The family for numbers to predict.
pub fn regression(args: &Args, set: &Set, search: &Search) -> Result<Report, Failure> {
    let rows = set.rows();
    let nearest = search.top_k(rows, 1)?;
    let linear = si::smoothness_linear(&nearest, &set.targets);
    let exponential = si::smoothness_exponential(&nearest, &set.targets, args.gamma);
    if linear.anchors == 0 && exponential.anchors == 0 {
        let file = args.features.display();
        let found = match *set.targets {
            [_] => "1 sample, expected 2 or more".to_owned(),
            [first, ..] => format!("all numbers to predict are {first}, expected different ones"),
            [] => "no numbers to predict, expected one for each sample".to_owned(),
        };
        return Err(format!("{file}: {found}").into());
    }
    let falling = format!(
        "1 where the nearest sample has the nearest number, falling by exp(-{} x)",
        args.gamma
    );
    Ok(Report {
        samples: rows.len(),
        features: set.dim,
        unpaired: None,
        measures: vec![
            Measure::new(
                "linear smoothness",
                linear,
                "the nearest sample's number, between the farthest (0) and the nearest one (1)",
            ),
            Measure::new("exponential smoothness", exponential, falling),
        ],
        classes: Vec::new(),
    })
}

/// Refuses sets in which no sample has both another of its class and one of another class.
fn refuse_what_separates_nothing(args: &Args, set: &Set) -> Result<(), Failure> {
    let (file, samples) = (args.features.display(), set.labels.len());
    let present: Vec<(&String, u32)> =
        set.names.iter().zip(set.counts()).filter(|(_, count)| *count > 0).collect();
    let found = match *present {
        [(name, _)] => {
            format!("all {samples} of class `{name}`, expected 2 classes or more")
        }
        _ if present.iter().all(|(_, count)| *count == 1) => {
            format!("{samples} classes of 1 sample each, expected a class of 2 or more")
        }
        _ => return Ok(()),
    };
    Err(format!("{file}: found samples that separate nothing, {found}").into())
}

/// Random triplets of three different samples; none where there are fewer.
fn triplets(args: &Args, rows: Rows<'_>) -> impl Iterator<Item = [u32; 3]> {
    let len = rows.len() as u32;
    let count = if len < 3 { 0 } else { args.triplets };
    let seed = args.seed;
    (0..count).map(move |index| {
        let mut rng = Rng::new(seed, Purpose::Sample, 0, index);
        let i = rng.below(len);
        // One of those that are left, moved past those that are taken.
        let past = |taken: u32, index: u32| index + u32::from(index >= taken);
        let j = past(i, rng.below(len - 1));
        let k = past(i.max(j), past(i.min(j), rng.below(len - 2)));
        [i, j, k]
    })
}
