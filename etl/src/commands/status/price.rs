//! What a query costs: the bytes that Athena scanned, at the price that `ETL_PRICE_PER_TB` sets.

use anyhow::anyhow;
use common::settings;
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

    /// The price of a query that scanned so many bytes.
    pub(super) fn of(self, bytes: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a price, rounded when shown")]
        let bytes = bytes.max(Self::MIN_BYTES) as f64;
        bytes / 1e12 * self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_at_least_that_of_ten_megabytes() {
        let price = Price::per_tb(5.0).unwrap();
        assert!((price.of(1) - 0.00005).abs() < 1e-9);
        assert!((price.of(2_000_000_000_000) - 10.0).abs() < 1e-9);
        assert!(Price::per_tb(-1.0).is_none() && Price::per_tb(f64::NAN).is_none());
    }
}
