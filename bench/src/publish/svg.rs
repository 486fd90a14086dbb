//! Latency over time as SVG: one panel for each server, reloads and failures marked. No I/O.

use std::fmt::Write as _;
use std::time::Duration;

use crate::load::Bucket;

const WIDTH: f64 = 900.0;
const PANEL_HEIGHT: f64 = 110.0;
const PANEL_GAP: f64 = 34.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 40.0;
/// The ends of the latency axis, which is logarithmic, in milliseconds.
const LOWEST_MS: f64 = 0.1;
const HIGHEST_MS: f64 = 10_000.0;

/// One panel.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// The counts over time.
    pub series: Vec<Bucket>,
    /// When reloads began.
    pub reloads: Vec<Duration>,
}

/// Draws all panels over the same time axis.
#[must_use]
pub fn draw(heading: &str, panels: &[Panel]) -> String {
    let seconds = panels
        .iter()
        .filter_map(|panel| panel.series.last())
        .map(|last| last.start.as_secs_f64())
        .fold(1.0, f64::max)
        .ceil();
    let height = TOP + BOTTOM + panels.len() as f64 * (PANEL_HEIGHT + PANEL_GAP);
    let mut svg = head(WIDTH, height);
    text(&mut svg, LEFT, 20.0, "start", 14, heading);
    let legend = "line: longest latency in each 50 ms; dashed: reload; red: requests failed";
    text(&mut svg, WIDTH - RIGHT, 36.0, "end", 11, legend);
    for (index, panel) in panels.iter().enumerate() {
        let top = TOP + PANEL_GAP * 0.7 + index as f64 * (PANEL_HEIGHT + PANEL_GAP);
        draw_panel(&mut svg, panel, top, seconds);
    }
    let bottom = height - BOTTOM + 14.0;
    for second in 0..=seconds as u32 {
        let label = format!("{second} s");
        text(
            &mut svg,
            across(f64::from(second), seconds),
            bottom,
            "middle",
            11,
            &label,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, top: f64, seconds: f64) {
    text(svg, LEFT, top - 6.0, "start", 12, &panel.title);
    let (left, right, bottom) = (LEFT, WIDTH - RIGHT, top + PANEL_HEIGHT);
    for (label, value_ms) in [
        ("0.1 ms", 0.1),
        ("1 ms", 1.0),
        ("10 ms", 10.0),
        ("100 ms", 100.0),
        ("1 s", 1000.0),
    ] {
        let y = down(value_ms, top);
        line(svg, (left, y), (right, y), "stroke=\"#ddd\"");
        text(svg, left - 6.0, y + 4.0, "end", 10, label);
    }
    for reload in &panel.reloads {
        let x = across(reload.as_secs_f64(), seconds);
        line(
            svg,
            (x, top),
            (x, bottom),
            "stroke=\"#777\" stroke-dasharray=\"3 3\"",
        );
    }
    // A stretch without an answer is a gap in the line, not a zero.
    for stretch in panel.series.split(|bucket| bucket.answered == 0) {
        let points: Vec<String> = stretch
            .iter()
            .map(|bucket| {
                let x = across(bucket.start.as_secs_f64(), seconds);
                format!("{x:.1},{:.1}", down(bucket.max.as_secs_f64() * 1e3, top))
            })
            .collect();
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.2\"/>",
            points.join(" ")
        );
    }
    for bucket in panel.series.iter().filter(|bucket| bucket.failed > 0) {
        let x = across(bucket.start.as_secs_f64(), seconds);
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"#d62728\">\
             <title>{} failed</title></circle>",
            top + 5.0,
            bucket.failed
        );
    }
    line(svg, (left, bottom), (right, bottom), "stroke=\"#444\"");
    line(svg, (left, top), (left, bottom), "stroke=\"#444\"");
}

fn across(second: f64, seconds: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * (second / seconds).clamp(0.0, 1.0)
}

fn down(value_ms: f64, top: f64) -> f64 {
    let share = (value_ms.max(LOWEST_MS) / LOWEST_MS).log10() / (HIGHEST_MS / LOWEST_MS).log10();
    top + PANEL_HEIGHT * (1.0 - share.clamp(0.0, 1.0))
}

/// The beginning of a picture of this size.
pub(super) fn head(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

pub(super) fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {style}/>",
        from.0, from.1, to.0, to.1
    );
}

pub(super) fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: u32, content: &str) {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" \
         fill=\"#222\">{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(start_ms: u64, answered: u64, failed: u64, max_ms: u64) -> Bucket {
        let max = Duration::from_millis(max_ms);
        Bucket {
            start: Duration::from_millis(start_ms),
            answered,
            failed,
            p99: max,
            max,
        }
    }

    #[test]
    fn a_gap_splits_the_line_and_failures_are_marked() {
        let series = vec![
            bucket(0, 5, 0, 1),
            bucket(50, 5, 0, 2),
            bucket(100, 0, 3, 0),
            bucket(150, 5, 0, 1),
        ];
        let panel = Panel {
            title: "a < b".to_owned(),
            series,
            reloads: vec![Duration::from_millis(75)],
        };
        let svg = draw("heading", &[panel]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert_eq!(svg.matches("stroke-dasharray").count(), 1);
        assert!(svg.contains("3 failed") && svg.contains("a &lt; b"));
    }

    #[test]
    fn the_axis_is_logarithmic_and_bounded() {
        assert_eq!(down(LOWEST_MS, 0.0), PANEL_HEIGHT);
        assert_eq!(down(HIGHEST_MS, 0.0), 0.0);
        assert_eq!(down(0.0, 0.0), PANEL_HEIGHT);
        assert_eq!(down(1e9, 0.0), 0.0);
        let decade = down(1.0, 0.0) - down(10.0, 0.0);
        assert!((decade - (down(10.0, 0.0) - down(100.0, 0.0))).abs() < 1e-9);
    }
}
