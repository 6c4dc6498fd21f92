"""The centre crop of ADM, which the papers on ImageNet share (Dhariwal & Nichol, 2021)."""

from PIL import Image

from genfield.data.decoding import Reading

NAME = "adm"


class AdmReading(Reading):
    """Reads pictures as all sources do, but for the crop, which is that of ADM's data loader."""

    def fit(self, image: Image.Image) -> Image.Image:
        """Halved by a box filter while its smaller side is twice the size or more, then resized by
        a bicubic one until that side is the size, then the centre square."""
        while min(image.size) >= 2 * self.size:
            image = image.resize(tuple(n // 2 for n in image.size), Image.Resampling.BOX)
        scale = self.size / min(image.size)
        shape = tuple(round(n * scale) for n in image.size)
        image = image.resize(shape, Image.Resampling.BICUBIC)
        left, top = ((n - self.size) // 2 for n in image.size)
        return image.crop((left, top, left + self.size, top + self.size))
