//! How long to wait before a program that keeps dying is started again.

use std::time::Duration;

/// No wait is longer than this.
const LONGEST: Duration = Duration::from_secs(30);

/// The wait before the next attempt, after `failures` attempts in a row of which none lived through
/// its probation: none after the first, then 1.5, 2.25, 3.375 … seconds, at most 30.
pub(crate) fn delay(failures: u32) -> Duration {
    if failures <= 1 {
        return Duration::ZERO;
    }
    // 1.5^9 is past the longest wait, so the exponent needs no more.
    let exponent = (failures - 1).min(9);
    Duration::from_secs_f64(1.5_f64.powi(exponent.cast_signed())).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_by_half_and_stops_at_thirty_seconds() {
        let seconds: Vec<f64> = (0..12).map(|n| delay(n).as_secs_f64()).collect();
        assert_eq!(&seconds[..5], [0.0, 0.0, 1.5, 2.25, 3.375]);
        assert_eq!(seconds[10], 30.0);
        assert_eq!(delay(u32::MAX), LONGEST);
        assert!(seconds.is_sorted());
    }
}
