//! The column with a job's watermark: in mode `append` rows outside of the run's range are rejected, since another run reads them;
//! with a key the latest value is what the next run reads on from, also where its row is rejected.

use common::Row;
use common::job::{JobSpec, Point, WatermarkRange};
use common::message::Reject;
use common::schema::{ResultColumn, SchemaError};

/// The column, and the rows that the run reads.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    position: usize,
    range: WatermarkRange,
}

/// The latest value of the rows so far.
#[derive(Debug, Default)]
pub(crate) struct Latest<'a>(Option<(Point, &'a str)>);

impl Latest<'_> {
    /// As Athena wrote it.
    pub(crate) fn text(self) -> Option<String> {
        self.0.map(|(_, text)| text.to_owned())
    }
}

impl Watched {
    /// None for a run that reads on from no watermark.
    pub(crate) fn new(job: &JobSpec, result: &[ResultColumn]) -> Result<Option<Self>, SchemaError> {
        let Some(range) = &job.watermark else {
            return Ok(None);
        };
        Ok(Some(Self {
            position: range.position(result)?,
            range: range.clone(),
        }))
    }

    /// The reject of a row outside of a range that ends; of others the latest value is kept.
    pub(crate) fn look<'a>(&self, row: Row<'a>, latest: &mut Latest<'a>) -> Option<Reject> {
        let value = row.get(self.position);
        let Some(to) = &self.range.to else {
            let read = |text| Some((Point::read(self.range.parameter_type, text)?, text));
            latest.0 = latest.0.take().max(value.and_then(read));
            return None;
        };
        let WatermarkRange { column, from, .. } = &self.range;
        (!self.range.contains(value)).then(|| Reject {
            column: None,
            rule: "watermark".to_owned(),
            reason: format!(
                "its {column} is not in the range that the run reads: from {from} and before {to}; write {column} >= and < in the SQL, so that each row is read by one run"
            ),
        })
    }
}
