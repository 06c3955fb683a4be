//! Charts as SVG: panels side by side, a colour for each kind of line.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::program::Failure;

/// Colours that people tell apart whatever their eyes (Okabe and Ito, 2008), black and grey.
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(240, 228, 66),
    RGBColor(0, 0, 0),
    RGBColor(110, 110, 110),
];
const PANEL: (u32, u32) = (420, 300);
const COLUMNS: usize = 3;
/// Height of a row of the legend.
const LEGEND: u32 = 24;

/// The points of one kind.
pub struct Line {
    /// Its place among the chart's names.
    pub kind: usize,
    pub points: Vec<(f64, f64)>,
}

pub struct Panel {
    pub title: String,
    pub lines: Vec<Line>,
}

pub struct Chart<'a> {
    pub panels: &'a [Panel],
    /// What the axes are, across and up.
    pub axes: [&'a str; 2],
    /// What the kinds are called in the legend.
    pub names: &'a [&'a str],
    /// Points are joined by lines, over whole numbers.
    pub joined: bool,
    /// Points are many, and axes have no scale.
    pub bare: bool,
}

/// A kind's place in the legend.
struct Entry {
    kind: usize,
    x: i32,
    y: i32,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Chart<'_> {
    /// The chart as text; `None` without panels.
    pub fn svg(&self) -> Result<Option<String>, Failure> {
        if self.panels.is_empty() {
            return Ok(None);
        }
        let columns = self.panels.len().min(COLUMNS);
        let rows = self.panels.len().div_ceil(columns);
        // The legend needs two panels' width.
        let width = PANEL.0 * columns.max(2) as u32;
        let (legend, height) = self.legend(width);
        let mut svg = String::new();
        {
            let size = (width, PANEL.1 * rows as u32 + height);
            let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            root.fill(&WHITE)?;
            let (top, below) = root.split_vertically(height);
            for Entry { kind, x, y } in legend {
                let colour = self.colour(kind);
                top.draw(&Circle::new((x, y + 7), 5, colour.filled()))?;
                top.draw(&Text::new(self.names[kind], (x + 10, y), ("sans-serif", 13)))?;
            }
            for (area, panel) in below.split_evenly((rows, columns)).iter().zip(self.panels) {
                self.draw(area, panel)?;
            }
            root.present()?;
        }
        Ok(Some(svg))
    }

    fn colour(&self, kind: usize) -> RGBAColor {
        match COLOURS.get(kind) {
            Some(colour) if self.names.len() <= COLOURS.len() => colour.to_rgba(),
            _ => HSLColor(kind as f64 / self.names.len() as f64, 0.65, 0.45).to_rgba(),
        }
    }

    /// Where the names of the kinds that are there stand, and the height that they take.
    fn legend(&self, width: u32) -> (Vec<Entry>, u32) {
        let lines = || self.panels.iter().flat_map(|panel| &panel.lines);
        let (mut x, mut y) = (12, 11);
        let mut places = Vec::new();
        for (kind, name) in self.names.iter().enumerate() {
            if lines().any(|line| line.kind == kind) {
                let wide = 30 + 7 * name.chars().count() as i32;
                if x > 12 && x + wide > width as i32 {
                    (x, y) = (12, y + LEGEND as i32);
                }
                places.push(Entry { kind, x, y });
                x += wide;
            }
        }
        (places, y as u32 + LEGEND)
    }

    fn draw(&self, area: &Area<'_>, panel: &Panel) -> Result<(), Failure> {
        let is_shown = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
        let of = |line: &Line| line.points.iter().copied().filter(is_shown).collect::<Vec<_>>();
        let points: Vec<(f64, f64)> = panel.lines.iter().flat_map(of).collect();
        let [x, y] = self.axes;
        let mut chart = ChartBuilder::on(area)
            .caption(&panel.title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(if self.bare { 0 } else { 36 })
            .y_label_area_size(if self.bare { 0 } else { 48 })
            .build_cartesian_2d(
                range(points.iter().map(|p| p.0)),
                range(points.iter().map(|p| p.1)),
            )?;
        let (across, up) = (chart.x_range(), chart.y_range());
        let mut mesh = chart.configure_mesh();
        if self.bare {
            mesh.disable_mesh();
        }
        mesh.x_desc(x)
            .y_desc(y)
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|x| match self.joined {
                // There is no half a block.
                true if x.fract() != 0.0 => String::new(),
                true => format!("{x:.0}"),
                false => short(*x, &across),
            })
            .y_label_formatter(&|y| short(*y, &up))
            .light_line_style(WHITE)
            .draw()?;
        let size = if self.bare { 2 } else { 4 };
        for line in &panel.lines {
            let (colour, points) = (self.colour(line.kind), of(line));
            if self.joined {
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            }
            chart.draw_series(points.iter().map(|&at| Circle::new(at, size, colour.filled())))?;
        }
        Ok(())
    }
}

/// The ends of an axis, with some room.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low > high {
        return 0.0..1.0;
    }
    let room = if high > low { (high - low) * 0.08 } else { 1.0 };
    low - room..high + room
}

/// A number as an axis shows it: neighbours on the axis differ.
fn short(x: f64, axis: &std::ops::Range<f64>) -> String {
    match axis.end - axis.start {
        0.0..0.5 => format!("{x:.2}"),
        0.5..10.0 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}
