//! A run as spans and events of [`tracing`], for whichever subscriber a program has.
//!
//! A run is a span `fit`; in it are a span `stage` for each stage, and in that a span `pass` for each
//! pass over the data. Nothing is entered: spans are the parents of events, so that a run on one thread
//! does not claim what others say meanwhile. All spans and events have the target `sepal`.
//!
//! | event | level | fields |
//! |---|---|---|
//! | `granted` in a stage | info | `arena_bytes`; where layers are frozen also `kept` (where what they give is), `kept_bytes`, `kept_copies`, `kept_depth` (behind how many layers), `kept_seconds` |
//! | `step` in a pass | trace | `loss`, `si` or `accuracy` of the batch, `rate` |
//! | `pass` in a pass | info | `loss`, `si` or `accuracy` within batches, `rate`, `held_out_si` where it was judged, `seconds` |
//! | `stage` in a stage | info | `passes`, `updates`, `loss`, `si` or `accuracy`, `seconds` |
//! | `snapshot` in the fit | debug | `outcomes`: stages that are over |
//!
//! ```
//! use sepal_core::reference::OnReference;
//! use sepal_models::{cache::Budget, data, fit::Fit, lenet::LENET, recipe, traced::Traced};
//!
//! tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
//! let mut images = data::bundled().train.head(128)?;
//! let (mut fit, budget) = (Fit::new(LENET, 0)?, Budget::default());
//! fit.run(&OnReference, &recipe::forward_si(1, 1), &mut images, &budget, &mut Traced::new(()))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! It prints lines such as
//! ```text
//! INFO fit:stage{index=1 first=4 last=8 objective="separation" passes=1 steps=1 done=0}: sepal: granted arena_bytes=3559936 kept=in memory as f32 kept_bytes=602112 kept_copies=1 kept_depth=4 kept_seconds=0.022
//! INFO fit:stage{index=1 ...}:pass{epoch=1}: sepal: pass loss=1.048 si=0.664 rate=0.01 seconds=0.093
//! INFO fit:stage{index=1 ...}: sepal: stage passes=1 updates=1 loss=1.048 si=0.664 seconds=0.093
//! ```

use sepal_core::stage::{Outcome, Stage};
use sepal_core::train::Step;
use tracing::{Span, debug, info, info_span, trace};

use crate::fit::{Event, Now, Snapshot, Watch, WatchError, Wish};

const TARGET: &str = "sepal";

/// Tells a run to the program's subscriber, and all of it to the watcher that it holds, which decides.
#[derive(Debug)]
pub struct Traced<W> {
    watch: W,
    fit: Span,
    stage: Span,
    pass: Span,
    /// The pass under way, from 1.
    epoch: u16,
    /// Whether scores are SI.
    separates: bool,
}

impl<W: Watch> Traced<W> {
    /// A run that `watch` decides on; `()` lets it run.
    pub fn new(watch: W) -> Self {
        let fit = info_span!(target: TARGET, "fit");
        Self { watch, fit, stage: Span::none(), pass: Span::none(), epoch: 1, separates: false }
    }

    /// The watcher inside.
    pub fn into_inner(self) -> W {
        self.watch
    }

    /// A score as SI, and as accuracy: one of the two is there.
    fn named(&self, score: f32) -> [Option<f32>; 2] {
        [self.separates.then_some(score), (!self.separates).then_some(score)]
    }
}

impl<W: Watch> Watch for Traced<W> {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        match *event {
            Event::Stage { index, stage, bytes, steps, done, prefix } => {
                let Stage { first, last, recipe, .. } = *stage;
                let (objective, passes) = (recipe.objective.name(), recipe.epochs);
                self.separates = recipe.objective.loss().is_some();
                self.epoch = done.checked_div(steps).unwrap_or(0) as u16 + 1;
                self.stage = info_span!(
                    target: TARGET, parent: &self.fit, "stage",
                    index, first, last, objective, passes, steps, done
                );
                let choice = prefix.map(|prefix| prefix.choice);
                info!(
                    target: TARGET, parent: &self.stage,
                    arena_bytes = bytes,
                    kept = choice.map(|choice| display(choice.store)),
                    kept_bytes = choice.map(|choice| choice.bytes),
                    kept_copies = choice.map(|choice| choice.copies),
                    kept_depth = prefix.map(|prefix| prefix.depth),
                    kept_seconds = prefix.map(|prefix| prefix.time.as_secs_f64()),
                    "granted"
                );
            }
            Event::Step(&Step::Trained { score, rate, .. }) => {
                if self.pass.is_none() {
                    let epoch = self.epoch;
                    self.pass = info_span!(target: TARGET, parent: &self.stage, "pass", epoch);
                }
                let counted = score.anchors.saturating_add(score.skipped).max(1);
                let [si, accuracy] = self.named(score.correct as f32 / counted as f32);
                let loss = score.value;
                trace!(target: TARGET, parent: &self.pass, loss, si, accuracy, rate, "step");
            }
            Event::Step(_) => {}
            Event::Pass { epoch, loss, score, rate, held_out: held_out_si, time } => {
                let ([si, accuracy], seconds) = (self.named(score), time.as_secs_f64());
                info!(
                    target: TARGET, parent: &self.pass,
                    loss, si, accuracy, rate, held_out_si, seconds, "pass"
                );
                (self.pass, self.epoch) = (Span::none(), epoch.saturating_add(1));
            }
            Event::Done { outcome, time, .. } => {
                let Outcome { epochs: passes, updates, loss, score, .. } = *outcome;
                let ([si, accuracy], seconds) = (self.named(score), time.as_secs_f64());
                info!(
                    target: TARGET, parent: &self.stage,
                    passes, updates, loss, si, accuracy, seconds, "stage"
                );
                self.stage = Span::none();
            }
        }
        self.watch.event(event)
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        debug!(target: TARGET, parent: &self.fit, outcomes = snapshot.outcomes.len(), "snapshot");
        self.watch.snapshot(snapshot)
    }

    fn judge(&mut self, now: Now<'_>, stage: &Stage<'_>) -> Result<Option<f32>, WatchError> {
        self.watch.judge(now, stage)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};

    use sepal_core::reference::OnReference;
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Metadata, Subscriber};

    use super::*;
    use crate::cache::Budget;
    use crate::data;
    use crate::fit::{Fit, FitError};
    use crate::lenet::LENET;
    use crate::recipe;

    /// Everything said: a line for each span and event, behind the names of what it is in.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<(Vec<String>, Vec<String>)>>);

    /// Writes fields, numbers by their type alone where they are measured.
    struct Line<'a>(&'a mut String);

    impl Visit for Line<'_> {
        fn record_f64(&mut self, field: &Field, value: f64) {
            assert!(value.is_finite(), "{field}");
            *self.0 += &format!(" {field}");
        }

        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            *self.0 += &match field.name() {
                "message" => format!(" {value:?}"),
                "arena_bytes" => format!(" {field}"),
                name => format!(" {name}={value:?}"),
            };
        }
    }

    impl Heard {
        /// Notes a line, and gives its place among spans.
        fn note(
            &self,
            parent: Option<&Id>,
            what: &Metadata<'_>,
            fields: &dyn Fn(&mut Line<'_>),
        ) -> usize {
            let (spans, lines) = &mut *self.0.lock().unwrap();
            let within = parent.map_or("", |id| &spans[id.into_u64() as usize - 1]);
            let mut line = format!("{within}{}", if what.is_span() { what.name() } else { "" });
            if what.is_span() {
                line += "/";
                spans.push(line.clone());
            }
            fields(&mut Line(&mut line));
            lines.push(line);
            spans.len()
        }
    }

    impl Subscriber for Heard {
        fn enabled(&self, what: &Metadata<'_>) -> bool {
            assert_eq!(what.target(), TARGET);
            true
        }

        fn new_span(&self, span: &Attributes<'_>) -> Id {
            let place = self.note(span.parent(), span.metadata(), &|line| span.record(line));
            Id::from_u64(place as u64)
        }

        fn event(&self, event: &tracing::Event<'_>) {
            self.note(event.parent(), event.metadata(), &|line| event.record(line));
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    /// Judges every pass, and stops before the last stage.
    struct Judge(usize);

    impl Watch for Judge {
        fn event(&mut self, event: &Event<'_>) -> Wish {
            match event {
                Event::Stage { index, .. } if *index == self.0 => Wish::Stop,
                _ => Wish::Go,
            }
        }

        fn judge(&mut self, _: Now<'_>, _: &Stage<'_>) -> Result<Option<f32>, WatchError> {
            Ok(Some(0.5))
        }
    }

    #[test]
    fn a_run_is_told_whole_and_the_watcher_inside_decides() {
        let heard = Heard::default();
        let mut images = data::bundled().train.head(256).unwrap();
        let mut fit = Fit::new(LENET, 0).unwrap();
        let stopped = tracing::subscriber::with_default(heard.clone(), || {
            let (recipe, budget) = (recipe::forward_si(2, 1), Budget::default());
            fit.run(&OnReference, &recipe, &mut images, &budget, &mut Traced::new(Judge(1)))
        });
        assert!(matches!(stopped, Err(FitError::Stopped)), "{stopped:?}");
        let bytes = 256 * 6 * 14 * 14 * 4;
        let (step, pass) = ("step loss si rate", "pass loss si rate held_out_si seconds");
        let expected = [
            "fit/".to_owned(),
            "fit/stage/ index=0 first=0 last=4 objective=\"separation\" passes=2 steps=2 done=0"
                .to_owned(),
            "fit/stage/ granted arena_bytes".to_owned(),
            "fit/stage/pass/ epoch=1".to_owned(),
            format!("fit/stage/pass/ {step}"),
            format!("fit/stage/pass/ {step}"),
            format!("fit/stage/pass/ {pass}"),
            "fit/stage/pass/ epoch=2".to_owned(),
            format!("fit/stage/pass/ {step}"),
            format!("fit/stage/pass/ {step}"),
            format!("fit/stage/pass/ {pass}"),
            "fit/stage/ stage passes=2 updates=4 loss si seconds".to_owned(),
            "fit/stage/ index=1 first=4 last=8 objective=\"separation\" passes=2 steps=2 done=0"
                .to_owned(),
            format!(
                "fit/stage/ granted arena_bytes kept=in memory as f32 kept_bytes={bytes} \
                 kept_copies=1 kept_depth=4 kept_seconds"
            ),
            "fit/ snapshot outcomes=1".to_owned(),
        ];
        assert_eq!(heard.0.lock().unwrap().1, expected);
    }
}
