//! The report as a page.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use maud::{Markup, PreEscaped, html};
use sepal::backend::{Backend, Bank, Device};
use sepal::models::cache::{Choice, Store};
use sepal::models::data::{Dataset, Samples};
use sepal::models::features::Features;
use sepal::neighbour::Nearest;
use sepal::net::Model;

use crate::args::Args;
use crate::chart::{Chart, Line, Panel};
use crate::confusion::Confusion;
use crate::html::page;
use crate::judge::{Accuracy, Judge, Row};
use crate::program::Failure;
use crate::progress::{Cost, Pass};
use crate::report::{bytes, percent};

/// Test images that are mapped.
const MAPPED: u32 = 500;
/// Neighbours of a test image that are shown.
const NEIGHBOURS: usize = 6;
/// Test images whose neighbours are shown at most, half of them recognised.
const SHOWN: usize = 12;
/// Classes of a confusion matrix that is still readable.
const READABLE: usize = 30;

/// What the page tells.
pub struct Page<'a, D> {
    pub args: &'a Args,
    /// CPU seconds of the training.
    pub cpu: f64,
    pub rows: &'a [Row],
    pub costs: &'a [Cost],
    pub passes: &'a [Pass],
    pub accuracy: &'a [(&'a str, Accuracy)],
    pub judge: &'a Judge<'a, D>,
    pub model: &'a Model<'a>,
}

impl<D: Device> Page<'_, D> {
    /// The page as HTML.
    pub fn text(&self) -> Result<String, Failure> {
        let Judge { device, test, .. } = *self.judge;
        let last = self.model.net.layers.len();
        let predicted = Features::new(device, self.model, &mut &*test, last)?.largest();
        let body = html! {
            (self.summary())
            h2 { "What each block learnt" }
            (self.blocks()?)
            h2 { "Learning curves" }
            (self.curves()?)
            h2 { "Memory and time" }
            (self.stages())
            h2 { "Maps of the features" }
            (self.maps()?)
            h2 { "Confusion" }
            (self.confusion(&predicted))
            (self.neighbours(&predicted)?)
        };
        Ok(page("What the net learnt", &body))
    }

    fn summary(&self) -> Markup {
        let (judge, args) = (self.judge, self.args);
        let data = args.set.name();
        let command: Vec<String> = std::env::args().skip(1).collect();
        let largest = self.costs.iter().map(|cost| cost.bytes).max().unwrap_or(0);
        html! {
            p { code { "train " (command.join(" ")) } }
            p {
                (judge.train.len()) " training and " (judge.test.len()) " test samples of " (data) ", "
                (judge.classes) " classes; seed " (args.seed) "; training took "
                (format!("{:.1}", self.cpu)) " CPU seconds and at most " (bytes(largest))
                " of memory for a stage."
            }
            table {
                tr { th { "test accuracy, %" } th { "nearest" } th { "linear" } th { "head" } }
                @for (name, Accuracy { nearest, linear, head }) in self.accuracy {
                    tr {
                        td { (name) }
                        @for share in [nearest, linear, head] { td { (percent(Some(*share))) } }
                    }
                }
            }
            p.note {
                "Nearest: the nearest neighbour among training samples, by the last features. Linear: a \
                 linear classifier on them. Head: the net's own classifier."
            }
        }
    }

    fn blocks(&self) -> Result<Markup, Failure> {
        let points = |of: &dyn Fn(&Row) -> Option<f64>| {
            let rows = self.rows.iter().enumerate();
            rows.filter_map(|(at, row)| Some((at as f64, of(row)? * 100.0))).collect()
        };
        let lines = vec![
            Line { kind: 0, points: points(&|row| row.si) },
            Line { kind: 1, points: points(&|row| row.cross_si) },
        ];
        let panels = [Panel { title: "Separation Index".to_owned(), lines }];
        let names = ["SI of training samples", "cross-SI of test samples"];
        let axes = ["block (0 is the raw input)", "%"];
        let svg =
            Chart { panels: &panels, axes, names: &names, joined: true, bare: false }.svg()?;
        let cost = |row: &Row| self.costs.iter().find(|cost| cost.last == row.end);
        Ok(html! {
            (PreEscaped(svg.unwrap_or_default()))
            table {
                tr {
                    th { "block" } th { "shape" } th { "parameters" } th { "SI, %" }
                    th { "cross-SI, %" } th { "passes" } th { "seconds" } th { "RAM" }
                }
                @for row in self.rows {
                    tr {
                        td { (row.name) } td { (row.shape) } td { (row.parameters) }
                        td { (percent(row.si)) } td { (percent(row.cross_si)) }
                        @if let Some(cost) = cost(row) {
                            td { (cost.epochs) } td { (format!("{:.1}", cost.seconds)) }
                            td { (bytes(cost.bytes)) }
                        } @else { td { "-" } td { "-" } td { "-" } }
                    }
                }
            }
            p.note {
                "SI: the share of training samples whose nearest other training sample has their label. \
                 Cross-SI: the share of test samples whose nearest training sample has their label. "
                (self.judge.bank.len()) " training samples are looked among."
            }
        })
    }

    fn curves(&self) -> Result<Markup, Failure> {
        let mut stages: Vec<&str> = self.passes.iter().map(|pass| &*pass.stage).collect();
        stages.dedup();
        let names = ["loss", "right within batches", "SI of held-out samples"];
        let chart = |kinds: &[usize], up: &str, of: &dyn Fn(&Pass, usize) -> Option<f64>| {
            let panels: Vec<Panel> = stages
                .iter()
                .map(|stage| {
                    let passes = || self.passes.iter().filter(|pass| pass.stage == *stage);
                    let line = |&kind: &usize| {
                        let at = |pass: &Pass| Some((f64::from(pass.epoch), of(pass, kind)?));
                        Line { kind, points: passes().filter_map(at).collect() }
                    };
                    Panel { title: (*stage).to_owned(), lines: kinds.iter().map(line).collect() }
                })
                .collect();
            Chart { panels: &panels, axes: ["pass", up], names: &names, joined: true, bare: false }
                .svg()
        };
        let losses = chart(&[0], "loss", &|pass, _| Some(pass.loss))?;
        let shares = chart(&[1, 2], "%", &|pass, kind| match kind {
            1 => Some(pass.score * 100.0),
            _ => pass.held_out.map(|si| f64::from(si) * 100.0),
        })?;
        Ok(match losses.zip(shares) {
            Some((losses, shares)) => html! { (PreEscaped(losses)) (PreEscaped(shares)) },
            None => html! { p { "No stage was trained in this run." } },
        })
    }

    fn stages(&self) -> Markup {
        let kept = |cost: &Cost| match cost.prefix.map(|prefix| (prefix, prefix.choice)) {
            None => "none in front".to_owned(),
            Some((_, Choice { store: Store::Recomputed, .. })) => Store::Recomputed.to_string(),
            Some((prefix, Choice { store, bytes: kept, .. })) => {
                format!("{} {store}, {:.1} s", bytes(kept as usize), prefix.time.as_secs_f64())
            }
        };
        html! {
            table {
                tr {
                    th { "stage" } th { "passes" } th { "seconds" } th { "RAM" }
                    th { "output of frozen layers" }
                }
                @for cost in self.costs {
                    tr {
                        td { (cost.stage) } td { (cost.epochs) }
                        td { (format!("{:.1}", cost.seconds)) } td { (bytes(cost.bytes)) }
                        td { (kept(cost)) }
                    }
                }
            }
            p.note {
                "RAM: weights, gradients and activations of what learns, and scratch; beside it lies what is \
                 kept of the output of frozen layers, which took the seconds there to compute."
            }
        }
    }

    fn maps(&self) -> Result<Markup, Failure> {
        let few = self.judge.test.head(MAPPED)?;
        let names: Vec<&str> = few.names().iter().map(String::as_str).collect();
        let mut panels = Vec::new();
        for row in self.rows {
            let features = self.judge.features(self.model, &few, row.end)?;
            let Some(places) = features.principal() else { continue };
            let mut lines: Vec<Line> =
                (0..names.len()).map(|kind| Line { kind, points: Vec::new() }).collect();
            for ([x, y], &label) in places.into_iter().zip(few.labels()) {
                lines[usize::from(label)].points.push((x, y));
            }
            lines.retain(|line| !line.points.is_empty());
            panels.push(Panel { title: row.name.clone(), lines });
        }
        let chart =
            Chart { panels: &panels, axes: ["", ""], names: &names, joined: false, bare: true }
                .svg()?;
        Ok(html! {
            (PreEscaped(chart.unwrap_or_default()))
            p.note {
                (few.len()) " test samples by what each block makes of them, scaled to \
                 length 1, along the first two principal components."
                @if panels.len() < self.rows.len() {
                    " Blocks that give numbers that are not finite have no map."
                }
            }
        })
    }

    fn confusion(&self, predicted: &[u16]) -> Markup {
        let test = self.judge.test;
        let confusion = Confusion::new(test.names().len(), test.labels(), predicted);
        let names = test.names();
        let (classes, readable) = (names.len(), names.len() <= READABLE);
        let shade = |share: f64, right: bool| {
            let colour = if right { "0,158,115" } else { "213,94,0" };
            format!("background:rgba({colour},{:.2})", share.sqrt() * 0.8)
        };
        html! {
            p {
                "The net's head recognises " (percent(confusion.accuracy())) " % of " (confusion.total())
                " test samples; the mean of the classes' recalls is "
                (percent(confusion.balanced_accuracy())) " %."
            }
            table {
                tr {
                    th { "true class" } th { "samples" } th { "recall, %" } th { "precision, %" }
                    @if readable { @for class in 0..classes { th { (class) } } }
                }
                @for (class, row) in confusion.rows().enumerate() {
                    tr {
                        td { (class) " " (names[class]) }
                        td { (confusion.samples(class)) }
                        td { (percent(confusion.recall(class))) }
                        td { (percent(confusion.precision(class))) }
                        @if readable {
                            @for (guess, &count) in row.iter().enumerate() {
                                @let share = count as f64 / confusion.samples(class).max(1) as f64;
                                td style=(shade(share, guess == class)) {
                                    @if count > 0 { (count) }
                                }
                            }
                        }
                    }
                }
            }
            p.note { "Columns by number: how often the net's head says each class." }
        }
    }

    /// Test images and the training images next to them; nothing where samples are no images.
    fn neighbours(&self, predicted: &[u16]) -> Result<Markup, Failure> {
        let (test, bank) = (self.judge.test, &self.judge.bank);
        if picture(test, 0).is_none() {
            return Ok(html! {});
        }
        let is_right = |&at: &u32| predicted.get(at as usize) == test.labels().get(at as usize);
        let (right, wrong): (Vec<u32>, Vec<u32>) = (0..test.len()).partition(is_right);
        let half = |images: Vec<u32>| images.into_iter().take(SHOWN / 2);
        let shown: Vec<u32> = half(wrong).chain(half(right)).collect();
        let end = self.model.net.features_end();
        let queries = self.judge.features(self.model, &test.subset(&shown)?, end)?;
        let rows = self.judge.features(self.model, bank, end)?;
        let (queries, rows) = (Bank::Host(queries.rows()), Bank::Host(rows.rows()));
        let mut nearest = vec![Nearest::NONE; shown.len() * NEIGHBOURS];
        let mut backend = self.judge.device.open(&mut [])?;
        backend.top_k(queries, rows, 0, None, NEIGHBOURS, &mut nearest)?;
        let figure = |set: &Dataset, at: u32, class: &str, note: &str| {
            let name = |label: u16| set.names().get(usize::from(label)).map_or("", String::as_str);
            html! {
                figure {
                    img class=(class) src=(picture(set, at).unwrap_or_default()) alt="";
                    figcaption {
                        (set.labels().get(at as usize).map_or("", |&label| name(label)))
                        @if !note.is_empty() { br; (note) }
                    }
                }
            }
        };
        Ok(html! {
            h2 { "Nearest neighbours" }
            p.note {
                "Each row: a test image, with its class and what the head says where that is another, then its \
                 nearest training images by the last features, nearest first. Green has its class, orange another."
            }
            @for (&at, near) in shown.iter().zip(nearest.chunks_exact(NEIGHBOURS)) {
                @let label = test.labels().get(at as usize).copied().unwrap_or(0);
                @let said = predicted.get(at as usize).copied().unwrap_or(0);
                @let said = if said == label { "" } else { &*test.names()[usize::from(said)] };
                div {
                    (figure(test, at, "", &if said.is_empty() { String::new() } else { format!("said: {said}") }))
                    @for near in near.iter().filter(|near| near.exists()) {
                        @let same = bank.labels().get(near.index as usize) == Some(&label);
                        (figure(bank, near.index, if same { "right" } else { "wrong" }, ""))
                    }
                }
            }
        })
    }
}

/// A sample of one channel or three in bytes as a PNG in a URL.
fn picture(set: &Dataset, at: u32) -> Option<String> {
    let Samples::U8(data) = set.samples() else { return None };
    let (shape, plane) = (set.shape(), set.shape().plane() as usize);
    let colour = match shape.c {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        _ => return None,
    };
    let size = plane * shape.c as usize;
    let sample = data.get(at as usize * size..)?.get(..size)?;
    let pixels: Vec<u8> = (0..plane)
        .flat_map(|i| (0..shape.c as usize).filter_map(move |c| sample.get(c * plane + i).copied()))
        .collect();
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&pixels, shape.w, shape.h, colour).ok()?;
    Some(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png)))
}
