//! The plot: for each size one bar per method, as long as its median ratio to `curl | psql`, with a dot for each round. Below:
//! microseconds per row over the number of rows.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

use crate::report::{list, number};

const WIDTH: u32 = 760;
const CONTEST: u32 = 190;
const GROWTH: u32 = 230;
/// Left of the bars, for their names.
const NAMES: u32 = 210;
const BLUE: RGBColor = RGBColor(0x2b, 0x6c, 0xb0);
const GREY: RGBColor = RGBColor(0xa0, 0xae, 0xc0);

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws what was measured so far as SVG.
pub(crate) fn draw(result: &Value) -> String {
    let mut svg = String::new();
    draw_all(&mut svg, result).unwrap_or_else(|error| panic!("cannot draw the plot: {error}"));
    svg
}

fn draw_all(svg: &mut String, result: &Value) -> Drawn {
    let contests = list(&result["contest"]);
    let growth = list(&result["growth"]["measured"]);
    let top = CONTEST * u32::try_from(contests.len())?;
    let height = top + if growth.is_empty() { 10 } else { GROWTH };
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(top);
    for (contest, area) in contests
        .iter()
        .zip(upper.split_evenly((contests.len().max(1), 1)))
    {
        draw_contest(&area, contest)?;
    }
    if !growth.is_empty() {
        draw_growth(&lower, growth)?;
    }
    root.present()?;
    Ok(())
}

fn draw_contest(area: &Area<'_>, contest: &Value) -> Drawn {
    let ways = list(&contest["ways"]);
    let longest = ways
        .iter()
        .flat_map(|way| list(&way["ratios"]))
        .map(number)
        .fold(1.5, f64::max);
    let millions = number(&contest["rows"]) / 1e6;
    let title = format!("{millions} million rows, time as a multiple of curl | psql \\copy");
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin_right(20)
        .set_label_area_size(LabelAreaPosition::Left, NAMES)
        .set_label_area_size(LabelAreaPosition::Bottom, 24)
        .build_cartesian_2d(0.0..longest * 1.1, (0..ways.len()).into_segmented())?;
    let name = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(place) if *place < ways.len() => {
            format!(
                "{}  {:.2}",
                ways[*place]["way"].as_str().unwrap_or_default(),
                number(&ways[*place]["ratio"])
            )
        }
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(ways.len())
        .y_label_formatter(&name)
        .draw()?;
    for (place, way) in ways.iter().enumerate() {
        let color = if way["way"] == "this pipeline" {
            BLUE
        } else {
            GREY
        };
        let (from, to) = (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
        let mut bar = Rectangle::new([(0.0, from), (number(&way["ratio"]), to)], color.filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar])?;
        let rounds = list(&way["ratios"]).iter().map(number);
        chart.draw_series(
            rounds.map(|ratio| {
                Circle::new((ratio, SegmentValue::CenterOf(place)), 2, BLACK.filled())
            }),
        )?;
    }
    Ok(())
}

fn draw_growth(area: &Area<'_>, growth: &[Value]) -> Drawn {
    let points: Vec<(f64, f64)> = growth
        .iter()
        .map(|one| (number(&one["rows"]), number(&one["micros_a_row"])))
        .collect();
    let (least, most) = (points[0].0, points[points.len() - 1].0);
    let highest = points.iter().map(|(_, micros)| *micros).fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(
            "microseconds per row, by the number of rows",
            ("sans-serif", 15),
        )
        .margin_right(20)
        .set_label_area_size(LabelAreaPosition::Left, 40)
        .set_label_area_size(LabelAreaPosition::Bottom, 24)
        .build_cartesian_2d((least * 0.8..most * 1.25).log_scale(), 0.0..highest * 1.3)?;
    chart.configure_mesh().draw()?;
    chart
        .draw_series(LineSeries::new(points.iter().copied(), BLUE.stroke_width(2)).point_size(3))?;
    Ok(())
}
