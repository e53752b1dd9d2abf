"""Two tiny sets, as the tests of reports have them."""

from report.conftest import sets as sets
