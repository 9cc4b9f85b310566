"""What a frame costs the node: a model with named constants, never a measurement.

    E = P_cam t_cam + P_mcu t_cam + E_sense + V I_tx t_tx + V I_rx t_ack + P_sleep (T - t_active)

T is the time from frame to frame. t_tx and t_ack follow from the layout of a BLE data packet. On the 1M PHY, one bit
takes 1 us:

    preamble 1 | access address 4 | header 2 | L2CAP 4 | ATT 3 | payload up to 244 | CRC 3     2,088 us
    150 us pause, empty acknowledgement 80 us, 150 us pause                                     2,468 us in all

On the 2M PHY a bit takes half as long and the preamble has two bytes: 1,048 and 1,392 us. (L2CAP, ATT and payload are
251 bytes together, the most that a data packet holds since Bluetooth 4.2.) Not in the model: losses of
the regulator, retransmissions, connection upkeep, wake-up times, the ageing of a cell. The original's own power figures
are not public; the constants are data-sheet values, each with its source, and all can be overridden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from modicum.apps.pixelgen.radio.packets import ATTRIBUTE_BYTES

DAY = 86_400.0
Phy = Literal["1M", "2M"]


def constant(value: float, unit: str, source: str) -> Any:
    """A field of the model: non-negative, with its unit and where it comes from."""
    return Field(value, ge=0, description=source, json_schema_extra={"unit": unit})


@dataclass(frozen=True)
class AirTime:
    """Seconds that a transfer takes on the air.

    Attributes:
        packets: notifications.
        transmit: seconds in which the node sends.
        acknowledge: seconds in which it hears acknowledgements.
        pauses: seconds between the two, radio idle.
    """

    packets: int
    transmit: float
    acknowledge: float
    pauses: float

    @property
    def total(self) -> float:
        """Seconds from the first bit to the last."""
        return self.transmit + self.acknowledge + self.pauses


class FrameEnergy(BaseModel):
    """Joules from one frame to the next, by what they are spent on."""

    model_config = ConfigDict(frozen=True)

    basis: Literal["model"] = "model"
    camera: float
    processor: float
    sensors: float
    transmit: float
    acknowledge: float
    sleep: float
    period: float
    packets: int
    air_seconds: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> float:
        """Joules per frame."""
        parts = (self.camera, self.processor, self.sensors, self.transmit, self.acknowledge, self.sleep)
        return sum(parts)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def day(self) -> float:
        """Joules per day."""
        return self.total * DAY / self.period


class RgbCamera(BaseModel):
    """A colour camera that would send its whole picture over the same radio."""

    model_config = ConfigDict(frozen=True)

    name: str
    watts: float = Field(ge=0)
    frames_per_second: float = Field(gt=0)
    nbytes: int = Field(640 * 480 * 2, gt=0, description="VGA, RGB565")
    source: str


RGB_CAMERAS = (
    RgbCamera(
        name="OV7670",
        watts=0.060,
        frames_per_second=15,
        source="data sheet: 60 mW active, as quoted by Arducam; the 15 fps to be verified",
    ),
    RgbCamera(
        name="OV2640",
        watts=0.125,
        frames_per_second=15,
        source="data sheet: 125 mW active, as quoted by Arducam; the 15 fps to be verified",
    ),
)


class EnergyModel(BaseModel):
    """The constants, and what follows from them. Whatever was not found in a document is "to be verified"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voltage: float = constant(3.3, "V", "supply of the board (LM1117, schematic)")
    transmit_current: float = constant(3e-3, "A", "Apollo3 Blue at 0 dBm, data sheet, to be verified")
    receive_current: float = constant(3e-3, "A", "Apollo3 Blue receiving, data sheet, to be verified")
    processor_current_per_hertz: float = constant(
        6e-12, "A/Hz", "Apollo3: 6 uA/MHz, SparkFun's Artemis guides; at burst clock to be verified"
    )
    processor_hertz: float = constant(96e6, "Hz", "burst clock while a frame is read, published firmware")
    sleep_current: float = constant(
        18e-6, "A", "Artemis in deep sleep: about 18 uA, SparkFun's OpenLog Artemis guide"
    )
    camera_power: float = constant(
        2e-3, "W", "HM01B0: under 2 mW at QVGA and 30 fps, Arduino's Vision Shield guide; an upper bound"
    )
    camera_seconds: float = constant(0.2, "s", "5 frames per second, published register script")
    climate_charge: float = constant(
        3.6e-6, "C", "BME280: 3.6 uA at one reading per second, Bosch BST-BME280-DS002, revision 1.6"
    )
    light_current: float = constant(
        120e-6, "A", "BH1750FVI: 120 uA typical, 190 at most, ROHM technical note 2009.04, revision B"
    )
    light_seconds: float = constant(
        0.136, "s", "BH1750: coarse 16 ms, then fine 120 ms, published firmware and ROHM technical note"
    )
    microphone_current: float = constant(
        0.6e-3, "A", "a PDM microphone; which one is not published, to be verified"
    )
    microphone_seconds: float = constant(
        0.0, "s", "time of listening per frame; 4096 samples at 3,989 Hz are 1.03 s"
    )
    cell_charge: float = constant(810.0, "C", "CR2032: 225 mAh nominal, no data sheet read, to be verified")
    cell_voltage: float = constant(3.0, "V", "CR2032 nominal")
    phy: Phy = Field("1M", description="BLE physical layer")

    def air(self, nbytes: int, payload: int = ATTRIBUTE_BYTES, overhead: int = 0) -> AirTime:
        """Time on the air of a transfer.

        Args:
            nbytes: what is to be sent.
            payload: bytes of it per packet.
            overhead: bytes of our own header (and tag) per packet.
        """
        preamble, bit = (1, 1e-6) if self.phy == "1M" else (2, 0.5e-6)
        packets = -(-nbytes // payload)
        around = preamble + 4 + 2 + 4 + 3 + 3  # access address, header, L2CAP, ATT, CRC
        acknowledgement = preamble + 4 + 2 + 3
        return AirTime(
            packets=packets,
            transmit=8 * bit * (nbytes + packets * (overhead + around)),
            acknowledge=8 * bit * packets * acknowledgement,
            pauses=2 * 150e-6 * packets,
        )

    def frame(
        self, nbytes: int, period: float = 12.0, payload: int = ATTRIBUTE_BYTES, overhead: int = 0
    ) -> FrameEnergy:
        """Energy from one mono frame to the next.

        Args:
            nbytes: of a frame, and whatever else is sent with it.
            period: seconds from frame to frame; never less than the node is busy.
            payload: bytes per packet.
            overhead: bytes of our own header (and tag) per packet.
        """
        camera = self.camera_power * self.camera_seconds
        return self._spent(camera, self.camera_seconds, self.air(nbytes, payload, overhead), period)

    def rgb_frame(self, camera: RgbCamera, period: float = 12.0) -> FrameEnergy:
        """The same for a colour camera that is on for the time of one frame, without any header."""
        seconds = 1 / camera.frames_per_second
        return self._spent(camera.watts * seconds, seconds, self.air(camera.nbytes), period)

    def cell_days(self, energy: FrameEnergy) -> float:
        """Days that a new coin cell lasts."""
        return self.cell_charge * self.cell_voltage / energy.day

    def constants(self) -> list[tuple[str, float, str, str]]:
        """Name, value, unit and source of every number."""
        fields = type(self).model_fields.items()
        return [
            (name, getattr(self, name), str(field.json_schema_extra["unit"]), field.description or "")
            for name, field in fields
            if isinstance(field.json_schema_extra, dict)
        ]

    def _spent(self, camera: float, reading: float, air: AirTime, period: float) -> FrameEnergy:
        clock = self.processor_current_per_hertz * self.processor_hertz
        period = max(period, reading + air.total)
        light = self.light_current * self.light_seconds
        sound = self.microphone_current * self.microphone_seconds
        return FrameEnergy(
            camera=camera,
            processor=self.voltage * clock * reading,
            sensors=self.voltage * (self.climate_charge + light + sound),
            transmit=self.voltage * self.transmit_current * air.transmit,
            acknowledge=self.voltage * self.receive_current * air.acknowledge,
            sleep=self.voltage * self.sleep_current * (period - reading - air.total),
            period=period,
            packets=air.packets,
            air_seconds=air.total,
        )
