"""What was published of VTC's evaluation: Tables 2 to 6, and what the authors' result files say beside them.

Owns these figures (fairness specification, 12.4). Knows nothing of how ours come about.
"""

from msgspec import Struct

from policies.simulation.experiments.vtc_settings import REAL, Case, Cost

PROFILED: Cost = "quadratic"


class Published(Struct, frozen=True, omit_defaults=True):
    """Of one case; None: not published."""

    max_diff: float | None = None
    avg_diff: float | None = None
    diff_var: float | None = None
    tokens_per_s: float | None = None
    mean_ttft_s: float | None = None
    rejected: int | None = None
    tenant_ttft_s: tuple[tuple[float, float | None], ...] = ()
    """(mean, largest) to the first token, by tenant."""
    accumulated_gap: float | None = None
    phase_2_service_per_s: tuple[float, ...] = ()
    """Cost per second that each tenant got from 300 s to 600 s."""


PUBLISHED: dict[Case, Published] = {
    Case(REAL, "fcfs"): Published(759.97, 433.53, 32112.00, 777, mean_ttft_s=46.8, rejected=0),
    Case(REAL, "lcf"): Published(750.49, 323.82, 29088.90, 778, mean_ttft_s=41.2, rejected=0),
    Case(REAL, "vtc"): Published(368.40, 251.66, 6549.16, 779, mean_ttft_s=39.7, rejected=0),
    Case(REAL, "vtc_predict"): Published(365.47, 240.33, 5321.62, 773, mean_ttft_s=39.7, rejected=0),
    Case(REAL, "vtc_oracle"): Published(329.46, 227.51, 4475.76, 781, mean_ttft_s=40.0, rejected=0),
    Case(REAL, "rpm_5"): Published(143.86, 83.58, 1020.46, 340, mean_ttft_s=0.2, rejected=919),
    Case(REAL, "rpm_10"): Published(217.65, 128.24, 2767.44, 532, rejected=600),
    Case(REAL, "rpm_15"): Published(343.07, 161.06, 5188.79, 626, rejected=447),
    Case(REAL, "rpm_20"): Published(446.76, 195.71, 7449.79, 694, mean_ttft_s=3.7, rejected=342),
    Case(REAL, "rpm_30"): Published(693.66, 309.45, 24221.31, 747, mean_ttft_s=19.9, rejected=176),
    Case(REAL, "fcfs", PROFILED): Published(743.23, 457.29, 26645.42, 777),
    Case(REAL, "lcf", PROFILED): Published(709.35, 384.78, 23299.20, 778),
    Case(REAL, "vtc", PROFILED): Published(707.35, 368.74, 21918.67, 780),
    Case(REAL, "vtc_predict", PROFILED): Published(617.22, 337.05, 11803.41, 778),
    Case(REAL, "vtc_oracle", PROFILED): Published(387.43, 277.18, 4541.57, 783),
    Case(REAL, "rpm_5", PROFILED): Published(230.78, 151.00, 823.15, 340),
    Case(REAL, "rpm_20", PROFILED): Published(445.34, 270.51, 5938.52, 694),
    Case(REAL, "rpm_30", PROFILED): Published(801.16, 377.22, 25980.39, 747),
    Case("overload_600s", "fcfs", PROFILED): Published(323.18, 317.13, 15.98, 876),
    Case("overload", "vtc", PROFILED): Published(137.27, 74.87, 2819.40, 900),
    Case("overload", "vtc_oracle", PROFILED): Published(4.28, 0.34, 0.91, 893),
    Case("overload", "vtc"): Published(
        192.88, 103.77, 6981.24, 893, tenant_ttft_s=((124.5, None), (353.4, None)), accumulated_gap=9_050
    ),
    Case("overload", "vtc_noisy"): Published(33.98, 12.54, 111.94, 904),
    Case("overload", "vtc_oracle"): Published(5.87, 0.51, 1.71, 895),
    Case("overload_600s", "fcfs"): Published(
        447.37, 439.00, 30.62, 876, tenant_ttft_s=((485, None), (485, None)), accumulated_gap=238_000
    ),
    Case("eight_tenants", "vtc"): Published(
        322.16, 162.20, 5151.49, 875, tenant_ttft_s=(*3 * ((151, None),), *5 * ((295, None),))
    ),
    Case("eight_tenants", "vtc_noisy"): Published(99.43, 66.32, 487.10, 875),
    Case("eight_tenants", "vtc_oracle"): Published(43.23, 36.34, 56.52, 875),
    Case("eight_tenants", "fcfs"): Published(247.88, 230.81, 1083.63, 875, tenant_ttft_s=8 * ((256.5, None),)),
    Case("proportional", "vtc"): Published(tenant_ttft_s=((4.8, 10.6), (4.9, 10.8), (124.4, 206))),
    Case("proportional", "fcfs"): Published(tenant_ttft_s=((97.2, None), (97.5, None), (96.4, 200))),
    Case("on_off_less", "vtc"): Published(tenant_ttft_s=((3.5, 8.4), (102.4, 184))),
    Case("on_off_less", "fcfs"): Published(tenant_ttft_s=((85.2, 179), (93.2, None))),
    Case("increase", "vtc"): Published(tenant_ttft_s=((0.3, 0.8), (14.6, 50.4))),
    Case("increase", "fcfs"): Published(tenant_ttft_s=((7.2, 50.5), (11.7, None))),
    Case("on_off_overload", "vtc"): Published(tenant_ttft_s=((75.4, None), (509.5, None))),
    Case("on_off_overload", "fcfs"): Published(tenant_ttft_s=((374, None), (414, None))),
    Case("weighted", "vtc"): Published(tenant_ttft_s=4 * ((225.15, None),)),
    Case("poisson_on_off", "vtc"): Published(tenant_ttft_s=((1.5, 7.5), (125.1, None))),
    Case("poisson_on_off", "fcfs"): Published(tenant_ttft_s=((101.7, None), (112.3, None))),
    Case("dist_shift", "vtc"): Published(phase_2_service_per_s=(666, 692)),
    Case("dist_shift", "lcf"): Published(phase_2_service_per_s=(752, 607)),
    Case("poisson_short_long", "vtc"): Published(accumulated_gap=19_400),
    Case("poisson_short_long", "fcfs"): Published(accumulated_gap=220_000),
    Case("poisson_short_long_2", "vtc"): Published(accumulated_gap=41_500),
    Case("poisson_short_long_2", "fcfs"): Published(accumulated_gap=664_000),
}
"""Where the source gives one figure for tenants that differ by little, each has it. Of the eight tenants and the four
with weights it gives a range: its middle."""
