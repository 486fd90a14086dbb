//! Lines over a size as SVG, both axes logarithmic. No I/O.

use std::fmt::Write as _;

use super::svg::{head, line, text};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 430.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 48.0;
/// Height of a line of the legend.
const LEGEND: f64 = 16.0;

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it shows.
    pub title: String,
    /// Its colour, as SVG knows it.
    pub colour: &'static str,
    /// What it goes through, from left to right; all values above zero.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub heading: &'static str,
    /// What is on the horizontal axis.
    pub across: &'static str,
    /// What is on the vertical axis.
    pub down: &'static str,
    /// The lines, in the order of the legend.
    pub lines: Vec<Line>,
}

/// The whole decades that hold all values.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decades {
    low: i32,
    high: i32,
}

impl Decades {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0 && value.is_finite())
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if high <= 0.0 {
            return Self { low: 0, high: 1 };
        }
        let low = low.log10().floor() as i32;
        Self {
            low,
            high: (high.log10().ceil() as i32).max(low + 1),
        }
    }

    /// Where a value is, from 0 to 1.
    fn share(self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        share.clamp(0.0, 1.0)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10.0_f64.powi(power))
    }
}

impl Chart {
    /// Draws it.
    #[must_use]
    pub fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let across = Decades::of(points().map(|point| point.0));
        let down = Decades::of(points().map(|point| point.1));
        let legend = self.lines.len() as f64 * LEGEND;
        let (top, bottom) = (TOP + legend, HEIGHT + legend - BOTTOM);
        let (left, right) = (LEFT, WIDTH - RIGHT);
        let x = |value: f64| left + (right - left) * across.share(value);
        let y = |value: f64| bottom - (bottom - top) * down.share(value);

        let mut svg = head(WIDTH, HEIGHT + legend);
        text(&mut svg, left, 22.0, "start", 14, self.heading);
        text(&mut svg, left, top - 8.0, "middle", 11, self.down);
        text(&mut svg, right, bottom + 36.0, "end", 11, self.across);
        for tick in down.ticks() {
            line(
                &mut svg,
                (left, y(tick)),
                (right, y(tick)),
                "stroke=\"#ddd\"",
            );
            text(&mut svg, left - 6.0, y(tick) + 4.0, "end", 10, &label(tick));
        }
        for tick in across.ticks() {
            line(
                &mut svg,
                (x(tick), top),
                (x(tick), bottom),
                "stroke=\"#ddd\"",
            );
            text(&mut svg, x(tick), bottom + 16.0, "middle", 10, &label(tick));
        }
        for (index, one) in self.lines.iter().enumerate() {
            let at = 42.0 + index as f64 * LEGEND;
            let style = format!("stroke=\"{}\" stroke-width=\"2\"", one.colour);
            line(&mut svg, (left, at - 4.0), (left + 24.0, at - 4.0), &style);
            text(&mut svg, left + 30.0, at, "start", 11, &one.title);
            let points: Vec<String> = one
                .points
                .iter()
                .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
                .collect();
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" {style}/>",
                points.join(" ")
            );
            for point in &one.points {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"><title>{}: {} at {}\
                     </title></circle>",
                    x(point.0),
                    y(point.1),
                    one.colour,
                    one.title,
                    label(point.1),
                    label(point.0)
                );
            }
        }
        line(&mut svg, (left, bottom), (right, bottom), "stroke=\"#444\"");
        line(&mut svg, (left, top), (left, bottom), "stroke=\"#444\"");
        svg.push_str("</svg>\n");
        svg
    }
}

/// A number as short as it can be said.
fn label(value: f64) -> String {
    if value >= 1e6 {
        format!("{}M", rounded(value / 1e6))
    } else if value >= 1e3 {
        format!("{}k", rounded(value / 1e3))
    } else {
        rounded(value)
    }
}

fn rounded(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn_and_every_decade_marked() {
        let chart = Chart {
            heading: "heading",
            across: "entries",
            down: "ms",
            lines: vec![Line {
                title: "a".to_owned(),
                colour: "red",
                points: vec![(10_000.0, 0.3), (4_000_000.0, 3.0)],
            }],
        };
        let svg = chart.draw();
        assert_eq!(svg.matches("<circle").count(), 2);
        for mark in [">10k<", ">100k<", ">1M<", ">10M<", ">0.1<", ">1<", ">10<"] {
            assert!(svg.contains(mark), "{mark}");
        }
    }

    #[test]
    fn decades_hold_their_values_and_are_never_empty() {
        let decades = Decades::of([3.0, 40.0].into_iter());
        assert_eq!(decades, Decades { low: 0, high: 2 });
        assert_eq!(decades.share(10.0), 0.5);
        let one = Decades::of([10.0].into_iter());
        assert!(one.high > one.low);
        assert_eq!(Decades::of([].into_iter()), Decades { low: 0, high: 1 });
    }
}
