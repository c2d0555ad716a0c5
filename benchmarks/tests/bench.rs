//! The benchmark runs to its end with a few rows. Its numbers are not checked.

use std::process::Command;

#[test]
fn benchmark_with_few_rows_writes_report_result_and_plot() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let done = Command::new(env!("CARGO_BIN_EXE_bench"))
        .env("BENCH_DIR", dir.path())
        .env("BENCH_PARTS", "contest small stages growth")
        .env("BENCH_ROWS", "3000")
        .env("BENCH_REPEATS", "1")
        .env("BENCH_STAGE_ROWS", "1600")
        .env("BENCH_GROWTH", "500 1000")
        .output()
        .expect("the benchmark can be started");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}");
    let report = String::from_utf8_lossy(&done.stdout);
    for part in [
        "| this pipeline |",
        "A run of 100 rows",
        "| loader | 4 |",
        "| 1000 |",
    ] {
        assert!(report.contains(part), "no {part} in: {report}");
    }
    let json = std::fs::read(dir.path().join("result.json")).expect("a result was written");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("the result is JSON");
    assert!(json["contest"][0]["ways"][3]["ratio"].is_number());
    let plot = std::fs::read_to_string(dir.path().join("plot.svg")).expect("a plot was drawn");
    assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"));
}
