"""Public data sets that a user can fetch: where, under which terms, how large, and the command that makes a data set of them.

Nothing is fetched by stlab. Terms are those that the publisher states at the address; where none are stated, that is said.
"""

from __future__ import annotations

from dataclasses import dataclass

_NONE = "none stated there"
_PEMS = "none stated there; the readings are Caltrans PeMS's"


@dataclass(frozen=True)
class Published:
    """A public data set."""

    name: str
    about: str
    """What it holds, and its size."""
    address: str
    terms: str
    commands: tuple[str, ...]


SOURCES: tuple[Published, ...] = (
    Published(
        "Citi Bike", "bike trips in New York since 2013, a zip a month; October 2020: 101 MB", "https://citibikenyc.com/system-data",
        "Citi Bike's data sharing policy: https://citibikenyc.com/data-sharing-policy",
        (
            "stlab data grid '2024*-citibike-tripdata.zip' --cells 16x8 --step 1h --tz America/New_York --out bikes.npz",
            "stlab run st_vfm_ablation --set data.path=bikes.npz",
        ),
    ),
    Published(
        "NYC TLC", "taxi trips in New York since 2009, Parquet a month; zones since July 2016, coordinates before",
        "https://www.nyc.gov/site/tlc/about/tlc-trip-record-data.page", "those of nyc.gov",
        (
            "stlab data zones 'yellow_tripdata_2024-*.parquet' --without 264 --without 265 --tz America/New_York --out taxi.parquet",
            "stlab run node_baselines --set data.path=taxi.parquet --set data.graph=correlation",
        ),
    ),
    Published(
        "Caltrans PeMS", "detectors of California, Station 5-Minute files, a file a day and district",
        "https://pems.dot.ca.gov (with an account)", "those that an account agrees to",
        (
            "stlab data sensors 'd07_text_station_5min_2024_*.txt.gz' --value 'Total Flow' --tz America/Los_Angeles --out d07.parquet",
            "stlab run node_baselines --set data.path=d07.parquet --set data.missing=zero --set data.graph=correlation",
        ),
    ),
    Published(
        "PEMS03, 04, 07, 08", "flow of 358, 307, 883 and 170 detectors in 26,208, 16,992, 28,224 and 17,856 steps of 5 min",
        "https://github.com/Davidham3/STSGCN (Baidu, code p72z)", _PEMS,
        ("stlab run node_baselines --set data.path=PEMS04.npz --set data.distances=PEMS04.csv",),
    ),
    Published(
        "METR-LA", "speed of 207 detectors in Los Angeles, 34,272 steps of 5 min from March 2012",
        "https://github.com/liyaguang/DCRNN (Google Drive)", _NONE,
        ("stlab run node_baselines --set data.family=sensors --set data.path=metr-la.h5",),
    ),
    Published(
        "PEMS-BAY", "speed of 325 detectors in the Bay Area, 52,116 steps of 5 min from January 2017",
        "https://github.com/liyaguang/DCRNN (Google Drive)", _PEMS,
        ("stlab run node_baselines --set data.family=sensors --set data.path=pems-bay.h5",),
    ),
    Published(
        "LargeST", "flow of 8,600 detectors in California, 2017 to 2021, 5 min, 7 GB a year; its notebooks cut San Diego (716) from it",
        "https://www.kaggle.com/datasets/liuxu77/largest and https://github.com/liuxu77/LargeST", "CC BY-NC 4.0",
        ("stlab run node_baselines --set data.family=sensors --set data.path=sd_his_2019.h5 --set data.missing=zero",),
    ),
    Published(
        "UniST's ten", "TaxiBJ, BikeNYC, TaxiNYC, Crowd, Cellular, traffic of three cities and more: windows that are cut already, .json",
        "https://github.com/tsinghua-fib-lab/UniST (dataset/README.md)", "none stated there; each set is of another publisher",
        ("stlab run st_vfm_table2 --set data.path=TaxiBJ_short.json --set data.protocol=unist",),
    ),
    Published(
        "TaxiBJ, BikeNYC", "DeepST's grids: 32×32 half hours of four periods, and 16×8 hours of 2014, .h5",
        "https://github.com/lucktroy/DeepST", _NONE,
        ("stlab data convert NYC14_M16x8_T60_NewEnd.h5 --out bikenyc.npz", "stlab run st_vfm_ablation --set data.path=bikenyc.npz"),
    ),
)  # fmt: skip
