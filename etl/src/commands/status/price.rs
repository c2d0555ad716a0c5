//! What a run's queries cost: the bytes that Athena scanned, at the price that `ETL_PRICE_PER_TB` sets.

use anyhow::anyhow;
use common::message::QueryEnd;
use common::settings;
use ledger::Query;
use serde::Deserialize;

use crate::Failure;

/// The price of a terabyte (10^12 bytes) that Athena scans, in any currency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price(pub(super) f64);

impl Price {
    /// Athena charges a query for at least this many bytes ("Amazon Athena Pricing").
    const MIN_BYTES: i64 = 10_000_000;

    /// None for a number that is not a price.
    pub fn per_tb(price: f64) -> Option<Self> {
        (price.is_finite() && price >= 0.0).then_some(Self(price))
    }

    /// The price that `ETL_PRICE_PER_TB` sets, if any.
    pub fn configured() -> Result<Option<Self>, Failure> {
        #[derive(Deserialize)]
        struct Settings {
            price_per_tb: Option<f64>,
        }
        let settings: Settings = settings::load().map_err(Failure::usage)?;
        let Some(price) = settings.price_per_tb else {
            return Ok(None);
        };
        Self::per_tb(price).map(Some).ok_or_else(|| {
            Failure::usage(anyhow!(
                "ETL_PRICE_PER_TB is {price}, which is not a price; set it to the price of a terabyte, such as 5"
            ))
        })
    }

    /// The price of queries. Athena charges nothing for one that failed, or that it answered with an earlier result ("Amazon
    /// Athena Pricing").
    pub(super) fn of(self, queries: &[Query]) -> f64 {
        let charged = queries
            .iter()
            .filter(|query| query.state != QueryEnd::Failed.name() && !query.reused);
        let bytes: i64 = charged
            .map(|query| query.bytes_scanned.max(Self::MIN_BYTES))
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a price, rounded when shown")]
        let bytes = bytes as f64;
        bytes / 1e12 * self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn cost_is_at_least_that_of_ten_megabytes_for_each_query_that_is_charged() {
        let price = Price::per_tb(5.0).unwrap();
        let query = |state: &str, bytes_scanned, reused| Query {
            state: state.into(),
            bytes_scanned,
            reused,
            ..samples::query()
        };
        let costs = |queries: &[Query], cost: f64| (price.of(queries) - cost).abs() < 1e-9;
        assert!(costs(&[query("succeeded", 1, false)], 0.00005));
        assert!(costs(&[query("stopped", 2_000_000_000_000, false)], 10.0));
        let free = [
            query("failed", 2_000_000_000_000, false),
            query("succeeded", 0, true),
        ];
        assert!(costs(&free, 0.0));
        let [one, other] = free;
        let all = [
            one,
            other,
            query("stopped", 1, false),
            query("started", 0, false),
        ];
        assert!(costs(&all, 0.0001));
        assert!(Price::per_tb(-1.0).is_none() && Price::per_tb(f64::NAN).is_none());
    }
}
