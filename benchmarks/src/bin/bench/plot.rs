//! The plot: for each size a bar a way, as long as its median of ratios to the one line, with a dot for each round; and
//! microseconds a row over the number of rows. SVG, written by hand.

use std::fmt::Write as _;

use serde_json::Value;

use crate::report::{list, number};

const WIDTH: f64 = 760.0;
/// Where bars begin.
const LEFT: f64 = 210.0;
const BAR: f64 = 22.0;
const GROWTH: f64 = 200.0;

pub(crate) fn draw(result: &Value) -> String {
    let mut body = String::new();
    let mut y = 20.0;
    let written = draw_contests(&mut body, result, &mut y)
        .and_then(|()| draw_growth(&mut body, &result["growth"], &mut y));
    written.expect("a String takes everything");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn draw_contests(body: &mut String, result: &Value, y: &mut f64) -> std::fmt::Result {
    let contests = list(&result["contest"]);
    let ratios = contests
        .iter()
        .flat_map(|contest| list(&contest["ways"]))
        .flat_map(|way| list(&way["ratios"]))
        .map(number);
    let longest = ratios.fold(1.5, f64::max);
    let x = |ratio: f64| LEFT + ratio / longest * (WIDTH - LEFT - 60.0);
    for contest in contests {
        let rows = number(&contest["rows"]) / 1e6;
        *y += 10.0;
        writeln!(
            body,
            "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{rows} million rows, time as a multiple of curl | psql \\copy</text>"
        )?;
        *y += 12.0;
        let top = *y;
        for way in list(&contest["ways"]) {
            let ratio = number(&way["ratio"]);
            let name = way["way"].as_str().unwrap_or_default();
            let color = if name == "this pipeline" {
                "#2b6cb0"
            } else {
                "#a0aec0"
            };
            let middle = *y + BAR * 0.7;
            writeln!(body, "<text x=\"10\" y=\"{middle}\">{name}</text>")?;
            writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{color}\"/>",
                x(ratio) - LEFT
            )?;
            for one in list(&way["ratios"]) {
                writeln!(
                    body,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"#1a202c\"/>",
                    x(number(one)),
                    *y + BAR / 2.0
                )?;
            }
            writeln!(
                body,
                "<text x=\"{}\" y=\"{middle}\">{ratio:.2}</text>",
                WIDTH - 45.0
            )?;
            *y += BAR + 6.0;
        }
        writeln!(
            body,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{y}\" stroke=\"#c53030\" stroke-dasharray=\"4 3\"/>",
            x(1.0)
        )?;
        *y += 16.0;
    }
    Ok(())
}

fn draw_growth(body: &mut String, growth: &Value, y: &mut f64) -> std::fmt::Result {
    let measured: Vec<(f64, f64)> = list(&growth["measured"])
        .iter()
        .map(|one| (number(&one["rows"]), number(&one["micros_a_row"])))
        .collect();
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else {
        return Ok(());
    };
    *y += 10.0;
    writeln!(
        body,
        "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">microseconds a row, by the number of rows</text>"
    )?;
    let (top, bottom) = (*y + 10.0, *y + GROWTH);
    let most = measured
        .iter()
        .map(|(_, micros)| *micros)
        .fold(0.1, f64::max)
        * 1.3;
    let span = (last.0 / first.0).ln().max(0.1);
    let place = |rows: f64, micros: f64| {
        let x = LEFT + (rows / first.0).ln() / span * (WIDTH - LEFT - 60.0);
        (x, bottom - micros / most * (bottom - top))
    };
    writeln!(
        body,
        "<path d=\"M{LEFT} {top} V{bottom} H{}\" fill=\"none\" stroke=\"#718096\"/>",
        WIDTH - 45.0
    )?;
    let points: Vec<String> = measured
        .iter()
        .map(|(rows, micros)| place(*rows, *micros))
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    writeln!(
        body,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#2b6cb0\" stroke-width=\"2\"/>",
        points.join(" ")
    )?;
    for (rows, micros) in &measured {
        let (x, at) = place(*rows, *micros);
        writeln!(
            body,
            "<circle cx=\"{x:.1}\" cy=\"{at:.1}\" r=\"3.5\" fill=\"#2b6cb0\"/>"
        )?;
        writeln!(
            body,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{micros:.2}</text>",
            at - 9.0
        )?;
        writeln!(
            body,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{rows}</text>",
            bottom + 18.0
        )?;
    }
    *y = bottom + 34.0;
    Ok(())
}
