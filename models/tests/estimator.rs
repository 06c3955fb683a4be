//! The estimator: the same bits as the trainer beneath it, and errors that name what is wrong.
#![cfg(feature = "ndarray")]

use std::ops::Range;

use ndarray::{Array1, Array2, Array3, Array4, ArrayView1, ArrayView2, ArrayView4, Axis};
use sepal_core::net::Normalisation;
use sepal_core::reference::OnReference;
use sepal_models::architecture::Architecture;
use sepal_models::cache::Budget;
use sepal_models::data::{self, Dataset, Samples};
use sepal_models::estimator::{Classifier, EstimatorError, Fitted};
use sepal_models::features::Features;
use sepal_models::fit::{Event, Fit, FitError, Watch, Wish};
use sepal_models::learning::{Learning, Way};
use sepal_models::recipe;

fn arrays(set: &Dataset) -> (ArrayView4<'_, u8>, ArrayView1<'_, u16>) {
    let Samples::U8(pixels) = set.samples() else { panic!("numbers") };
    let shape = (set.len() as usize, 1, 28, 28);
    (ArrayView4::from_shape(shape, pixels).unwrap(), ArrayView1::from(set.labels()))
}

/// An error's one line has all the words.
#[track_caller]
fn says<T>(result: Result<T, EstimatorError>, words: &[&str]) {
    let Err(error) = result else { panic!("no error") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

/// Half of LeNet, a pass a block.
fn short() -> Learning {
    Learning { width: 50, epochs: 1, head_epochs: 2, ..Learning::default() }
}

#[test]
fn images_give_what_the_trainer_gives() {
    let (train, test) = (data::bundled().train.head(256).unwrap(), data::bundled().test);
    let test = test.head(100).unwrap();
    let ((x, y), (x_test, y_test)) = (arrays(&train), arrays(&test));
    let fitted = Classifier::on(OnReference).learning(short()).seed(3).fit(x, y).unwrap();

    let layers = Architecture::Lenet.layers(10, 50);
    let net = Architecture::Lenet.net(&layers, Architecture::Lenet.input(&train));
    let heads = short().heads(&net, 10).unwrap();
    let heads: Vec<_> = heads.iter().map(Vec::as_slice).collect();
    let mut fit = Fit::new(net, 3).unwrap();
    let budget = Budget::default();
    fit.run(&OnReference, &short().chosen(&heads, 10), &mut &train, &budget, &mut ()).unwrap();
    assert_eq!(fitted.model().net, net);
    let features = |set: &Dataset, last| {
        let mut set = set.clone();
        Features::new(&OnReference, &fit.model(), &mut set, last).unwrap()
    };
    let logits = features(&test, 15);
    assert_eq!(fitted.predict_logits(x_test).unwrap().as_slice(), Some(logits.data()));
    let largest: Vec<usize> = logits.largest().into_iter().map(usize::from).collect();
    assert_eq!(fitted.predict(x_test).unwrap().to_vec(), largest);
    let logits_accuracy = logits.accuracy();
    assert_eq!(fitted.score(x_test, y_test).unwrap(), logits_accuracy);
    for (block, last) in [(0, 4), (1, 8), (4, 15)] {
        let rows = fitted.transform(x_test, block).unwrap();
        assert_eq!(rows.as_slice(), Some(features(&test, last).data()), "{block}");
    }
    let si = [4, 8].map(|last| features(&train, last).unit().si(&OnReference).unwrap().value());
    assert_eq!(fitted.separation_index(x, y).unwrap(), si);

    // Labels of the other type; an array whose samples are not in a row; numbers of the same size.
    let wide = y.mapv(usize::from);
    let turned = x.permuted_axes([1, 2, 3, 0]).as_standard_layout().into_owned();
    let turned = turned.permuted_axes([3, 0, 1, 2]);
    assert!(turned.as_slice().is_none());
    let again =
        Classifier::on(OnReference).learning(short()).seed(3).fit(turned.view(), wide.view());
    let logits = fitted.predict_logits(x_test).unwrap();
    assert_eq!(again.unwrap().predict_logits(x_test).unwrap(), logits);
    let numbers = |x: ArrayView4<'_, u8>| x.mapv(|x| f32::from(x) / 255.0);
    let of_numbers = Classifier::on(OnReference).learning(short()).seed(3);
    let of_numbers = of_numbers.fit(numbers(x).view(), y).unwrap();
    let [a, b] = [&of_numbers, &fitted].map(|f| f.model().net.input.normalisation);
    assert!((a.mean[0] - b.mean[0]).abs() < 1e-6 && (a.std[0] - b.std[0]).abs() < 1e-6);
    let apart = of_numbers.score(numbers(x_test).view(), y_test).unwrap() - logits_accuracy;
    assert!(apart.abs() < 0.1, "{apart}");
}

/// Three classes of rows: 40 of each, in three of five features, which differ in size by a million.
fn rows() -> (Array2<f32>, Array1<usize>) {
    let y = Array1::from_shape_fn(120, |i| i % 3);
    let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 997) as f32 / 997.0;
    let scale = [1e-3, 1.0, 1e3, 1.0, 1.0];
    let x = Array2::from_shape_fn((120, 5), |(i, j)| {
        let told = if j < 3 && i % 3 == j { 1.0 } else { 0.0 };
        (told + noise(i, j)) * scale[j]
    });
    (x, y)
}

#[test]
fn rows_go_to_the_dense_net_and_come_back_from_a_file() {
    let (x, y) = rows();
    let (train, rest) = x.view().split_at(Axis(0), 90);
    let (y_train, y_rest) = y.view().split_at(Axis(0), 90);
    let classifier = Classifier::on(OnReference).head_epochs(20).head_rate(0.02).batch(32);
    let fitted = classifier.fit(train, y_train).unwrap();
    assert!(fitted.score(rest, y_rest).unwrap() > 0.9);
    // The first layer has the means of the features.
    let mean = train.mean_axis(Axis(0)).unwrap();
    let widths = fitted.model().weights.layer(&fitted.model().net, 1);
    let stored = widths.iter().find(|stored| stored.len() == 5).unwrap();
    let first: Vec<f32> = (0..5).filter_map(|at| stored.number(at)).collect();
    assert!(first.iter().zip(&mean).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()), "{first:?}");
    assert_eq!(fitted.model().net.input.normalisation, Normalisation::NONE);

    let sure = fitted.predict_proba(rest).unwrap();
    let logits = fitted.predict_logits(rest).unwrap();
    for ((sure, logits), class) in
        sure.rows().into_iter().zip(logits.rows()).zip(fitted.predict(rest).unwrap())
    {
        assert!((sure.sum() - 1.0).abs() < 1e-6 && sure.iter().all(|&p| p <= sure[class]));
        let ratio = (logits[0] - logits[1]).exp();
        assert!((sure[0] / sure[1] / ratio - 1.0).abs() < 1e-4);
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.sepal");
    fitted.save(&path).unwrap();
    let loaded = Fitted::load(OnReference, &path).unwrap();
    assert_eq!(loaded.model().net, fitted.model().net);
    assert_eq!(loaded.predict_logits(rest).unwrap(), logits);
    loaded.save(&folder.path().join("again.sepal")).unwrap();
    let bytes = |name| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("rows.sepal"), bytes("again.sepal"));
    let missing = Fitted::load(OnReference, &folder.path().join("none.sepal"));
    says(missing, &["none.sepal", "opening"]);
    says(fitted.save(folder.path()), &["renaming", &folder.path().display().to_string()]);
}

#[test]
fn tuning_changes_its_blocks_alone() {
    let (x, y) = rows();
    let mut fitted =
        Classifier::on(OnReference).epochs(1).head_epochs(2).fit(x.view(), y.view()).unwrap();
    let parameters = |fitted: &Fitted<_>| -> Vec<Vec<Vec<u8>>> {
        let model = fitted.model();
        let of = |layer| model.weights.layer(&model.net, layer).map(|s| s.bytes.to_vec()).to_vec();
        (0..9).map(of).collect()
    };
    // A user whose features are mirrored.
    let theirs = x.mapv(|x| -x);
    let before = fitted.score(theirs.view(), y.view()).unwrap();
    let at_first = parameters(&fitted);
    fitted.tune(1..2, recipe::block(2), theirs.view(), y.view()).unwrap();
    let tuned = parameters(&fitted);
    let changed: Vec<usize> = (0..9).filter(|&l| at_first[l] != tuned[l]).collect();
    assert_eq!(changed, [5, 6]);
    fitted.tune(0..3, recipe::classifier(60), theirs.view(), y.view()).unwrap();
    assert!(fitted.score(theirs.view(), y.view()).unwrap() > before + 0.2);

    let now = fitted.model().weights.layer(&fitted.model().net, 8)[0].bytes.to_vec();
    let mut tune = |blocks, x: ArrayView2<'_, f32>, y: ArrayView1<'_, usize>| {
        fitted.tune(blocks, recipe::block(1), x, y)
    };
    for blocks in [3..4, 2..4, 2..2, Range { start: 2, end: 1 }, 0..usize::MAX] {
        let named = format!("blocks {}..{}", blocks.start, blocks.end);
        says(tune(blocks, x.view(), y.view()), &[&named, "0..3"]);
    }
    let same = Array1::from_elem(120, 2);
    says(tune(0..1, x.view(), same.view()), &["class 2 for all 120 samples", "2 classes or more"]);
    let other = y.mapv(|label| label + 1);
    says(tune(0..1, x.view(), other.view()), &["label of sample 2", "found 3", "0 to 2"]);
    let narrow = x.slice_axis(Axis(1), (..4).into());
    says(tune(0..1, narrow, y.view()), &["1x5x1x1", "got 1x4x1x1"]);
    assert_eq!(fitted.model().weights.layer(&fitted.model().net, 8)[0].bytes, &now[..]);
}

#[test]
fn settings_are_taken() {
    let (x, y) = rows();
    struct Stages(Vec<(u16, u32, f32)>);
    impl Watch for Stages {
        fn event(&mut self, event: &Event<'_>) -> Wish {
            let Event::Stage { stage, .. } = event else { return Wish::Go };
            self.0.push((stage.recipe.epochs, stage.recipe.batch, stage.recipe.rate));
            if self.0.len() == 3 { Wish::Stop } else { Wish::Go }
        }
    }
    let on = || Classifier::on(OnReference);
    let classifier = on().epochs(2).head_epochs(3).batch(40).rate(0.5).head_rate(0.25);
    let mut stages = Stages(Vec::new());
    let stopped = classifier.fit_watched(x.view(), y.view(), &mut stages);
    assert!(matches!(stopped, Err(EstimatorError::Fit(FitError::Stopped))));
    assert_eq!(stages.0, [(2, 40, 0.5), (2, 40, 0.5), (3, 40, 0.25)]);
    // All of them where there are fewer than a batch has.
    let mut stages = Stages(Vec::new());
    on().strategy(Way::EndToEnd).epochs(1).fit_watched(x.view(), y.view(), &mut stages).unwrap();
    assert_eq!(stages.0, [(1, 120, 1e-2)]);

    // In equal parts, and both copies of a sample in one of them, whatever is left over.
    let (odd, y_odd) =
        (x.slice_axis(Axis(0), (..119).into()), y.slice_axis(Axis(0), (..119).into()));
    for (way, micro_batches, batch) in [
        (Way::Si, 1, 119),
        (Way::Si, 8, 112),
        (Way::ForwardForward, 1, 118),
        (Way::ForwardForward, 4, 112),
    ] {
        let learning = Learning {
            architecture: Architecture::Dense,
            way,
            micro_batches,
            epochs: 1,
            head_epochs: 1,
            ..Learning::default()
        };
        let mut stages = Stages(Vec::new());
        let stopped = on().learning(learning).fit_watched(odd, y_odd, &mut stages);
        assert!(matches!(stopped, Err(EstimatorError::Fit(FitError::Stopped))), "{way:?}");
        assert!(stages.0.iter().all(|stage| stage.1 == batch), "{way:?}: {:?}", stages.0);
    }

    // 12 steps a pass, or one.
    for (batch, passes) in [(10, (5, 30)), (120, (40, 300))] {
        let mut stages = Stages(Vec::new());
        let stopped = on().batch(batch).fit_watched(x.view(), y.view(), &mut stages);
        assert!(stopped.is_err());
        assert_eq!((stages.0[0].0, stages.0[2].0), passes);
    }

    let short = || on().strategy(Way::Random).head_epochs(1);
    let logits =
        |c: Classifier<_>| c.fit(x.view(), y.view()).unwrap().predict_logits(x.view()).unwrap();
    assert_ne!(logits(short()), logits(short().seed(1)));
    let given = Normalisation::scalar(1.0, 2.0);
    let fitted = short().normalisation(given).classes(7).fit(x.view(), y.view()).unwrap();
    assert_eq!(fitted.model().net.input.normalisation, given);
    assert_eq!(fitted.predict_logits(x.view()).unwrap().ncols(), 7);
    assert_eq!(logits(short().budget(Budget::bytes(0))), logits(short()));
    let lenet = short().architecture(Architecture::Lenet).fit(x.view(), y.view());
    says(lenet, &["Lenet cannot take samples of 1x5x1x1", "layer 3"]);
}

#[test]
fn what_cannot_be_fitted_or_predicted_is_named() {
    let (x, y) = rows();
    let fit =
        |x: ArrayView2<'_, f32>, y: ArrayView1<'_, usize>| Classifier::on(OnReference).fit(x, y);
    let mut holed = x.clone();
    holed[[4, 2]] = f32::NAN;
    says(fit(holed.view(), y.view()), &["element 2 of sample 4", "found NaN", "a finite number"]);
    says(fit(x.view(), Array1::from_elem(120, 1).view()), &["class 1 for all 120", "2 classes"]);
    says(fit(x.view(), Array1::from_elem(9, 1).view()), &["found 9", "expected 120"]);
    says(fit(Array2::zeros((0, 5)).view(), Array1::zeros(0).view()), &["[0, 5]", "samples"]);
    let cube = Array3::<u8>::zeros((120, 5, 5));
    says(Classifier::on(OnReference).fit(cube.view(), y.view()), &["[120, 5, 5]", "height, width"]);
    let alone = Array1::from_shape_fn(120, |i| i);
    says(fit(x.view(), alone.view()), &["no sample of the batch", "its own class"]);
    let on = || Classifier::on(OnReference);
    let few = on().classes(2).fit(x.view(), y.view());
    says(few, &["label of sample 2", "found 2", "0 to 1, as there are 2 classes"]);
    says(on().classes(0).fit(x.view(), y.view()), &["2 classes or more"]);
    says(on().epochs(0).fit(x.view(), y.view()), &["epochs: found 0"]);
    says(on().batch(1).fit(x.view(), y.view()), &["batch: found 1, expected 2"]);
    let parts = |way, batch, micro_batches| {
        let architecture = Architecture::Dense;
        let learning = Learning { architecture, way, batch, micro_batches, ..Learning::default() };
        on().learning(learning).fit(x.view(), y.view())
    };
    says(parts(Way::Si, 6, 4), &["micro_batches: found 4", "a divisor of the batch"]);
    says(parts(Way::ForwardForward, 7, 1), &["batch: found 7", "an even number"]);
    says(parts(Way::ForwardForward, 6, 2), &["micro_batches: found 2", "a divisor of half"]);
    let few = on().strategy(Way::ForwardForward).classes(6).fit(x.view(), y.view());
    says(few, &["6 classes", "1x5x1x1"]);
    says(on().rate(f32::NAN).fit(x.view(), y.view()), &["rate: found NaN", "above 0"]);
    says(on().strategy(Way::SelfSupervised).fit(x.view(), y.view()), &["way", "SelfSupervised"]);
    let two = x.slice_axis(Axis(0), (..2).into());
    let few = fit(two, y.slice_axis(Axis(0), (..2).into()));
    says(few, &["no sample of the batch"]);

    let fitted = on().strategy(Way::Random).head_epochs(1).fit(x.view(), y.view()).unwrap();
    let image = Array4::<f32>::zeros((1, 5, 2, 1));
    says(fitted.predict(image.view()), &["1x5x1x1", "got 1x5x2x1"]);
    says(fitted.predict(holed.view()), &["element 2 of sample 4"]);
    says(fitted.predict_proba(Array2::<f32>::zeros((0, 5)).view()), &["[0, 5]"]);
    says(fitted.transform(x.view(), 3), &["blocks 3..4", "0..3"]);
    says(fitted.transform(x.view(), usize::MAX), &["some of 0..3"]);
    let other = y.mapv(|label| label * 2);
    says(fitted.score(x.view(), other.view()), &["label of sample 2", "found 4", "0 to 2"]);
    says(fitted.separation_index(x.view(), y.slice_axis(Axis(0), (..9).into())), &["found 9"]);
    let one = x.slice_axis(Axis(0), (..1).into());
    let si = fitted.separation_index(one, y.slice_axis(Axis(0), (..1).into())).unwrap();
    assert_eq!(si, [None, None]);
}
