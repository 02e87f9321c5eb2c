//! Statistics of one metric.

use serde::Serialize;

/// How the values of a metric lie. Field names, the population standard deviation and the percentiles
/// (linear interpolation between the two nearest ranks, numpy's default) are AIPerf's
/// (`metric_result_from_array`), so equal values give equal figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub avg: f64,
    pub p1: f64,
    pub p5: f64,
    pub p10: f64,
    pub p25: f64,
    pub p50: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub min: f64,
    pub max: f64,
    pub std: f64,
    pub count: usize,
    pub sum: f64,
}

impl Spread {
    /// None when there are no values. Values that are not finite are left out: they would make every
    /// figure NaN.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let count = sorted.len();
        let sum: f64 = sorted.iter().sum();
        let avg = sum / count as f64;
        let std = (sorted.iter().map(|v| (v - avg).powi(2)).sum::<f64>() / count as f64).sqrt();
        let p = |percent: f64| percentile(&sorted, percent);
        Some(Self {
            avg,
            p1: p(1.0),
            p5: p(5.0),
            p10: p(10.0),
            p25: p(25.0),
            p50: p(50.0),
            p75: p(75.0),
            p90: p(90.0),
            p95: p(95.0),
            p99: p(99.0),
            min,
            max,
            std,
            count,
            sum,
        })
    }
}

/// Of values in rising order; 0 for none.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let at = percent / 100.0 * sorted.len().saturating_sub(1) as f64;
    let low = at as usize;
    let value = |index: usize| sorted.get(index).or(sorted.last()).copied().unwrap_or(0.0);
    value(low) + (at - low as f64) * (value(low + 1) - value(low))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values_give_what_numpy_gives() {
        // numpy.percentile(values, q) and numpy.std(values).
        for (values, p50, p90, p99, std) in [
            (vec![7.0], 7.0, 7.0, 7.0, 0.0),
            (vec![2.0, 1.0], 1.5, 1.9, 1.99, 0.5),
            ((1..=10).map(f64::from).collect(), 5.5, 9.1, 9.91, 2.872_281_323_269_014_3),
            ((1..=100).rev().map(f64::from).collect(), 50.5, 90.1, 99.01, 28.866_070_047_722_12),
            (vec![3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], 3.5, 6.9, 8.79, 2.570_870_475_150_391_7),
        ] {
            let spread = Spread::of(values.clone()).unwrap();
            for (got, wanted) in [(spread.p50, p50), (spread.p90, p90), (spread.p99, p99), (spread.std, std)]
            {
                assert!((got - wanted).abs() < 1e-12, "{values:?}: {got} is not {wanted}");
            }
            assert_eq!(spread.count, values.len());
            assert!((spread.avg * spread.count as f64 - spread.sum).abs() < 1e-9);
        }
    }

    #[test]
    fn nothing_has_no_spread_and_what_is_not_finite_is_nothing() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
        assert_eq!(Spread::of([f64::NAN, 2.0]).unwrap().p99, 2.0);
    }

    proptest! {
        #[test]
        fn percentiles_rise_within_bounds(values in prop::collection::vec(-1e9..1e9f64, 1..200)) {
            let s = Spread::of(values).unwrap();
            let rising = [s.min, s.p1, s.p5, s.p10, s.p25, s.p50, s.p75, s.p90, s.p95, s.p99, s.max];
            prop_assert!(rising.windows(2).all(|w| w[0] <= w[1] + 1e-6), "{rising:?}");
            prop_assert!(s.min <= s.avg + 1e-6 && s.avg <= s.max + 1e-6);
        }
    }
}
