//! What a query returns: columns, and rows that are made by ordinal or read from a file, so that a result of ten million
//! rows needs no memory. The same rows come out of both ways to read a result: pages by ordinal, and the bytes of the
//! CSV object, which is written once to a temporary file when somebody first asks for it.

use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::csv::{self, Row};

/// A column of a result, as `ResultSetMetadata.ColumnInfo` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The bare type name: `decimal`, not `decimal(10,2)`.
    pub type_name: String,
    pub precision: i32,
    pub scale: i32,
}

impl Column {
    /// A column of a type written as in SQL (`bigint`, `decimal(10,2)`, `char(2)`), with Athena's precision and scale for it.
    pub fn new(name: &str, sql_type: &str) -> Self {
        let (bare, arguments) = match sql_type.split_once('(') {
            Some((bare, rest)) if !matches!(bare, "array" | "map" | "row") => {
                (bare, rest.trim_end_matches(')'))
            }
            _ => (sql_type, ""),
        };
        let mut arguments = arguments.split(',').filter_map(|a| a.trim().parse().ok());
        let precision = arguments.next().unwrap_or(match bare {
            "smallint" => 5,
            "integer" => 10,
            "bigint" => 19,
            "float" | "double" => 17,
            "tinyint" | "timestamp" | "time" | "timestamp with time zone" => 3,
            "varchar" | "json" => i32::MAX,
            "varbinary" => 1_073_741_824,
            "decimal" => 38,
            _ => 0,
        });
        Self {
            name: name.to_owned(),
            type_name: bare.to_owned(),
            precision,
            scale: arguments.next().unwrap_or(0),
        }
    }
}

/// A query's result. Clones share the rows and the CSV file, once that was written.
#[derive(Clone)]
pub struct ResultSet {
    pub(crate) columns: Arc<[Column]>,
    rows: u64,
    source: Source,
    spool: Arc<OnceLock<Spool>>,
}

#[derive(Clone)]
enum Source {
    Generator(Arc<dyn Fn(u64) -> Row + Send + Sync>),
    File(Arc<CsvFile>),
}

/// The CSV object's bytes.
pub(crate) struct Spool {
    file: File,
    pub(crate) size: u64,
    /// Of the content, with its quotes.
    pub(crate) etag: String,
}

/// A CSV file with the byte at which every `STRIDE`th record begins.
struct CsvFile {
    bytes: File,
    index: Vec<u64>,
    size: u64,
}

const STRIDE: u64 = 1_000;

impl ResultSet {
    /// `rows` rows, the n-th (from 0) made by `row(n)`; it must give the same row each time it is asked.
    pub fn generated(
        columns: Vec<Column>,
        rows: u64,
        row: impl Fn(u64) -> Row + Send + Sync + 'static,
    ) -> Self {
        Self {
            columns: columns.into(),
            rows,
            source: Source::Generator(Arc::new(row)),
            spool: Arc::default(),
        }
    }

    /// These rows.
    pub fn of(columns: Vec<Column>, rows: Vec<Row>) -> Self {
        let count = rows.len() as u64;
        Self::generated(columns, count, move |n| {
            rows[usize::try_from(n).expect("fits")].clone()
        })
    }

    /// `of`, for rows written down in a test: `None` is NULL.
    pub fn table(columns: &[(&str, &str)], rows: &[&[Option<&str>]]) -> Self {
        let columns = columns
            .iter()
            .map(|(name, sql_type)| Column::new(name, sql_type))
            .collect();
        let rows = rows
            .iter()
            .map(|row| row.iter().map(|v| v.map(str::to_owned)).collect())
            .collect();
        Self::of(columns, rows)
    }

    /// No rows.
    pub fn empty(columns: Vec<Column>) -> Self {
        Self::of(columns, Vec::new())
    }

    /// The rows of a CSV file in the form that Athena writes, header included. The object is the file, byte for byte.
    pub fn from_csv_file(columns: Vec<Column>, path: &Path) -> Self {
        let all = std::fs::read(path)
            .unwrap_or_else(|e| panic!("cannot read the result file {}: {e}", path.display()));
        let (_, mut at) = csv::read_record(&all).expect("a result file has a header");
        let (mut index, mut rows) = (Vec::new(), 0);
        loop {
            if rows % STRIDE == 0 {
                index.push(at as u64);
            }
            let Some((_, taken)) = csv::read_record(&all[at..]) else {
                break;
            };
            at += taken;
            rows += 1;
        }
        let bytes = File::open(path).expect("the file was read a moment ago");
        let file = CsvFile {
            bytes,
            index,
            size: all.len() as u64,
        };
        Self {
            columns: columns.into(),
            rows,
            source: Source::File(Arc::new(file)),
            spool: Arc::default(),
        }
    }

    /// How many rows there are, without the header.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The n-th row, from 0. Quick for a generated result; use [`Self::range`] for a file.
    pub fn row(&self, n: u64) -> Row {
        self.range(n, 1)
            .pop()
            .unwrap_or_else(|| panic!("row {n} of a result of {} rows", self.rows))
    }

    /// Up to `count` rows from the n-th on.
    pub fn range(&self, n: u64, count: u64) -> Vec<Row> {
        let end = self.rows.min(n.saturating_add(count));
        match &self.source {
            Source::Generator(row) => (n..end).map(|n| row(n)).collect(),
            Source::File(file) => file.range(n, end),
        }
    }

    /// All of the CSV object. For small results.
    pub fn csv(&self) -> Vec<u8> {
        let spool = self.spool();
        spool
            .read(0, usize::try_from(spool.size).expect("fits"))
            .expect("the spooled result is readable")
    }

    /// The CSV object, written when this is called first. Blocks for as long as that takes.
    pub(crate) fn spool(&self) -> &Spool {
        self.spool.get_or_init(|| {
            self.write_spool()
                .expect("a result fits into the folder for temporary files")
        })
    }

    pub(crate) fn is_spooled(&self) -> bool {
        self.spool.get().is_some()
    }

    fn write_spool(&self) -> std::io::Result<Spool> {
        if let Source::File(file) = &self.source {
            return Spool::of(file.bytes.try_clone()?);
        }
        let mut out = BufWriter::with_capacity(1 << 20, tempfile::tempfile()?);
        let mut record = Vec::new();
        csv::write_record(
            &mut record,
            self.columns.iter().map(|c| Some(c.name.as_str())),
        );
        let mut start = 0;
        while start < self.rows {
            for row in self.range(start, STRIDE) {
                assert_eq!(
                    row.len(),
                    self.columns.len(),
                    "a generated row has as many values as there are columns"
                );
                csv::write_record(&mut record, row.iter().map(Option::as_deref));
            }
            out.write_all(&record)?;
            record.clear();
            start += STRIDE;
        }
        out.write_all(&record)?;
        Spool::of(out.into_inner()?)
    }
}

impl fmt::Debug for ResultSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResultSet")
            .field("columns", &self.columns)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl CsvFile {
    fn range(&self, n: u64, end: u64) -> Vec<Row> {
        if n >= end {
            return Vec::new();
        }
        let first = self.index[usize::try_from(n / STRIDE).expect("fits")];
        let last = self
            .index
            .get(usize::try_from(end.div_ceil(STRIDE)).expect("fits"))
            .copied()
            .unwrap_or(self.size);
        let mut bytes = vec![0; usize::try_from(last - first).expect("fits")];
        self.bytes
            .read_exact_at(&mut bytes, first)
            .expect("the result file is still there");
        let (mut rows, mut at) = (Vec::new(), 0);
        for ordinal in (n / STRIDE * STRIDE)..end {
            let (row, taken) =
                csv::read_record(&bytes[at..]).expect("the index counts what is there");
            at += taken;
            if ordinal >= n {
                rows.push(row);
            }
        }
        rows
    }
}

impl Spool {
    /// Reads the file once, for its hash.
    fn of(file: File) -> std::io::Result<Self> {
        let size = file.metadata()?.len();
        let mut hasher = DefaultHasher::new();
        let mut chunk = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let length = usize::try_from((size - at).min(1 << 20)).expect("fits");
            file.read_exact_at(&mut chunk[..length], at)?;
            hasher.write(&chunk[..length]);
            at += length as u64;
        }
        // The form of an object that was uploaded in parts, as Athena's are: not an MD5 of the content.
        Ok(Self {
            file,
            size,
            etag: format!("\"{:032x}-1\"", hasher.finish()),
        })
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> std::io::Result<Self> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        Self::of(file)
    }

    /// Up to `length` bytes from `at` on; fewer only at the end.
    pub(crate) fn read(&self, at: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let length =
            usize::try_from(self.size.saturating_sub(at)).map_or(length, |left| left.min(length));
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: u64) -> ResultSet {
        let columns = vec![Column::new("n", "bigint"), Column::new("text", "varchar")];
        ResultSet::generated(columns, rows, |n| {
            vec![
                Some(n.to_string()),
                (n % 3 != 0).then(|| format!("line\nof \"{n}\"")),
            ]
        })
    }

    #[test]
    fn precision_and_scale_are_athenas() {
        let decimal = Column::new("d", "decimal(10,2)");
        assert_eq!(
            (decimal.type_name.as_str(), decimal.precision, decimal.scale),
            ("decimal", 10, 2)
        );
        let char_2 = Column::new("c", "char(2)");
        assert_eq!(
            (char_2.type_name.as_str(), char_2.precision, char_2.scale),
            ("char", 2, 0)
        );
        assert_eq!(Column::new("v", "varchar").precision, i32::MAX);
        assert_eq!(
            Column::new("z", "timestamp with time zone").type_name,
            "timestamp with time zone"
        );
    }

    #[test]
    fn a_result_without_rows_is_its_header() {
        assert_eq!(numbers(0).csv(), b"\"n\",\"text\"\n");
    }

    #[test]
    fn the_csv_has_every_row_and_any_range_of_it_can_be_read() {
        let result = numbers(2_501);
        let all = result.csv();
        let spool = result.spool();
        assert_eq!(spool.read(7, 11).unwrap(), &all[7..18]);
        assert_eq!(
            spool.read(spool.size - 3, 10).unwrap(),
            &all[all.len() - 3..]
        );
        let mut at = 0;
        let mut rows = Vec::new();
        while let Some((row, taken)) = csv::read_record(&all[at..]) {
            rows.push(row);
            at += taken;
        }
        assert_eq!(
            rows.remove(0),
            vec![Some("n".to_owned()), Some("text".to_owned())]
        );
        assert_eq!(rows, result.range(0, u64::MAX));
    }

    #[test]
    fn a_file_gives_the_same_rows_as_what_it_was_written_from() {
        let generated = numbers(2_001);
        let mut path = tempfile::NamedTempFile::new().unwrap();
        path.write_all(&generated.csv()).unwrap();
        let read = ResultSet::from_csv_file(generated.columns().to_vec(), path.path());
        assert_eq!(read.rows(), 2_001);
        for (n, count) in [(0, 1), (999, 2), (1_500, 501), (2_000, 5), (2_001, 5)] {
            assert_eq!(read.range(n, count), generated.range(n, count), "from {n}");
        }
        assert_eq!(read.csv(), generated.csv());
        assert_eq!(read.spool().etag, generated.spool().etag);
    }

    #[test]
    fn another_content_has_another_etag() {
        assert_ne!(numbers(3).spool().etag, numbers(4).spool().etag);
    }
}
