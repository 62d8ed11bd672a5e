"""Compiled loops of the synthetic-head renderer (numba): z-buffer, alpha layers, shading, depth maps, noise.

Shapes: V vertices, F triangles, H x W samples (supersampled), K alpha layers, D light directions, L key lights.
Everything here is float32 and free of Python objects; `draw.py` and `lighting.py` prepare the arrays. All kernels sit in one
module because numba's cache does not see edits of imported ones.
"""

import math

import numpy as np
from numba import njit

_JIT = dict(cache=True, nogil=True, fastmath=True, error_model="numpy")
ALPHA_FLOOR = 0.03  # fragments fainter than this are dropped before they take a layer


@njit(inline="always", **_JIT)
def _edge(ax, ay, bx, by, px, py):
    return (bx - ax) * (py - ay) - (by - ay) * (px - ax)


@njit(**_JIT)
def raster_opaque(xy, inv_z, faces, depth, face_id):
    """Z-buffer: keep the nearest triangle of every sample.

    xy (V, 2) sample coordinates; inv_z (V,) 1/depth, 0 behind the camera; depth (H, W) holds 1/depth and is zero at the start;
    face_id (H, W) is -1 at the start.
    """
    height, width = depth.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = inv_z[a], inv_z[b], inv_z[c]
        if za <= 0.0 or zb <= 0.0 or zc <= 0.0:
            continue
        ax, ay, bx, by, cx, cy = xy[a, 0], xy[a, 1], xy[b, 0], xy[b, 1], xy[c, 0], xy[c, 1]
        area = _edge(ax, ay, bx, by, cx, cy)
        if abs(area) < 1e-9:
            continue
        x0 = max(0, int(math.ceil(min(ax, min(bx, cx)) - 0.5)))
        x1 = min(width - 1, int(math.floor(max(ax, max(bx, cx)) - 0.5)))
        y0 = max(0, int(math.ceil(min(ay, min(by, cy)) - 0.5)))
        y1 = min(height - 1, int(math.floor(max(ay, max(by, cy)) - 0.5)))
        scale = 1.0 / area
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                wa = _edge(bx, by, cx, cy, px, py) * scale
                wb = _edge(cx, cy, ax, ay, px, py) * scale
                wc = 1.0 - wa - wb
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                z = wa * za + wb * zb + wc * zc
                if z > depth[y, x]:
                    depth[y, x] = z
                    face_id[y, x] = f


@njit(inline="always", **_JIT)
def _texel(textures, offset, width, height, u, v):
    """Bilinear RGBA at (u, v), v upwards; textures is the flat uint8 pool. Returns values in 0..255."""
    x = min(max(u * width - 0.5, 0.0), width - 1.001)
    y = min(max((1.0 - v) * height - 0.5, 0.0), height - 1.001)
    x0, y0 = int(x), int(y)
    fx, fy = x - x0, y - y0
    i = offset + 4 * (y0 * width + x0)
    j = i + 4 * width
    w00, w01, w10, w11 = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    r = textures[i] * w00 + textures[i + 4] * w01 + textures[j] * w10 + textures[j + 4] * w11
    g = textures[i + 1] * w00 + textures[i + 5] * w01 + textures[j + 1] * w10 + textures[j + 5] * w11
    b = textures[i + 2] * w00 + textures[i + 6] * w01 + textures[j + 2] * w10 + textures[j + 6] * w11
    a = textures[i + 3] * w00 + textures[i + 7] * w01 + textures[j + 3] * w10 + textures[j + 7] * w11
    return r, g, b, a


@njit(**_JIT)
def raster_layers(xy, inv_z, faces, face_uv, face_texture, texture_info, textures, depth, layer_z, layer_face, layer_alpha):
    """Collect the nearest K transparent fragments of every sample in front of the opaque surface, nearest first.

    layer_z (H, W, K) holds 1/depth and starts at zero; layer_face, layer_alpha (H, W, K) as well.
    """
    height, width = depth.shape
    num_layers = layer_z.shape[2]
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = inv_z[a], inv_z[b], inv_z[c]
        if za <= 0.0 or zb <= 0.0 or zc <= 0.0:
            continue
        ax, ay, bx, by, cx, cy = xy[a, 0], xy[a, 1], xy[b, 0], xy[b, 1], xy[c, 0], xy[c, 1]
        area = _edge(ax, ay, bx, by, cx, cy)
        if abs(area) < 1e-9:
            continue
        t = face_texture[f]
        offset, tex_w, tex_h = texture_info[t, 0], texture_info[t, 1], texture_info[t, 2]
        x0 = max(0, int(math.ceil(min(ax, min(bx, cx)) - 0.5)))
        x1 = min(width - 1, int(math.floor(max(ax, max(bx, cx)) - 0.5)))
        y0 = max(0, int(math.ceil(min(ay, min(by, cy)) - 0.5)))
        y1 = min(height - 1, int(math.floor(max(ay, max(by, cy)) - 0.5)))
        scale = 1.0 / area
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                wa = _edge(bx, by, cx, cy, px, py) * scale
                wb = _edge(cx, cy, ax, ay, px, py) * scale
                wc = 1.0 - wa - wb
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                z = wa * za + wb * zb + wc * zc
                if z <= depth[y, x] or z <= layer_z[y, x, num_layers - 1]:
                    continue
                ka, kb, kc = wa * za / z, wb * zb / z, wc * zc / z
                u = ka * face_uv[f, 0, 0] + kb * face_uv[f, 1, 0] + kc * face_uv[f, 2, 0]
                v = ka * face_uv[f, 0, 1] + kb * face_uv[f, 1, 1] + kc * face_uv[f, 2, 1]
                alpha = _texel(textures, offset, tex_w, tex_h, u, v)[3] / 255.0
                if alpha < ALPHA_FLOOR:
                    continue
                k = num_layers - 1
                while k > 0 and layer_z[y, x, k - 1] < z:
                    layer_z[y, x, k] = layer_z[y, x, k - 1]
                    layer_face[y, x, k] = layer_face[y, x, k - 1]
                    layer_alpha[y, x, k] = layer_alpha[y, x, k - 1]
                    k -= 1
                layer_z[y, x, k] = z
                layer_face[y, x, k] = f
                layer_alpha[y, x, k] = alpha


@njit(inline="always", **_JIT)
def _fragment(
    f, px, py, fx, fy, cx0, cy0, xy, inv_z, faces, face_uv, face_texture, texture_info, textures, to_linear, normals, light, key_light,
    key_dirs, key_colors, materials, face_material,
):
    """Linear RGB of triangle f seen through the sample (px, py): albedo x interpolated irradiance + key-light highlights."""
    a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
    ax, ay, bx, by, cx, cy = xy[a, 0], xy[a, 1], xy[b, 0], xy[b, 1], xy[c, 0], xy[c, 1]
    scale = 1.0 / _edge(ax, ay, bx, by, cx, cy)
    wa = _edge(bx, by, cx, cy, px, py) * scale * inv_z[a]
    wb = _edge(cx, cy, ax, ay, px, py) * scale * inv_z[b]
    wc = (1.0 - (_edge(bx, by, cx, cy, px, py) + _edge(cx, cy, ax, ay, px, py)) * scale) * inv_z[c]
    total = 1.0 / (wa + wb + wc)
    wa, wb, wc = wa * total, wb * total, wc * total
    u = wa * face_uv[f, 0, 0] + wb * face_uv[f, 1, 0] + wc * face_uv[f, 2, 0]
    v = wa * face_uv[f, 0, 1] + wb * face_uv[f, 1, 1] + wc * face_uv[f, 2, 1]
    t = face_texture[f]
    r, g, bl, _ = _texel(textures, texture_info[t, 0], texture_info[t, 1], texture_info[t, 2], u, v)
    r, g, bl = to_linear[int(r + 0.5)], to_linear[int(g + 0.5)], to_linear[int(bl + 0.5)]
    r *= wa * light[a, 0] + wb * light[b, 0] + wc * light[c, 0]
    g *= wa * light[a, 1] + wb * light[b, 1] + wc * light[c, 1]
    bl *= wa * light[a, 2] + wb * light[b, 2] + wc * light[c, 2]
    m = face_material[f]
    strength, power = materials[m, 0], materials[m, 1]
    if strength > 0.0:
        nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
        ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
        nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
        n_len = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
        vx, vy, vz = -(px - cx0) / fx, -(py - cy0) / fy, -1.0
        v_len = 1.0 / math.sqrt(vx * vx + vy * vy + vz * vz)
        facing = (nx * vx + ny * vy + nz * vz) * n_len * v_len
        if facing < 0.0:
            nx, ny, nz = -nx, -ny, -nz
        fresnel = strength * (1.0 + 2.0 * (1.0 - min(1.0, abs(facing))) ** 4)
        for k in range(key_dirs.shape[0]):
            hx = key_dirs[k, 0] + vx * v_len
            hy = key_dirs[k, 1] + vy * v_len
            hz = key_dirs[k, 2] + vz * v_len
            cosine = (nx * hx + ny * hy + nz * hz) * n_len / math.sqrt(hx * hx + hy * hy + hz * hz + 1e-9)
            if cosine <= 0.0:
                continue
            gain = fresnel * cosine**power * (wa * key_light[a, k] + wb * key_light[b, k] + wc * key_light[c, k])
            r += gain * key_colors[k, 0]
            g += gain * key_colors[k, 1]
            bl += gain * key_colors[k, 2]
    return r, g, bl


@njit(**_JIT)
def shade(
    camera, xy, inv_z, faces, num_opaque, face_uv, face_texture, texture_info, textures, to_linear, normals, light, key_light, key_dirs,
    key_colors, materials, face_material, face_id, layer_z, layer_face, layer_alpha, samples, out,
):
    """Composite alpha layers over the opaque surface; average `samples` x `samples` into out (H', W', 4), premultiplied linear RGBA.

    camera: (fx, fy, cx, cy) in samples. Layer faces count from num_opaque in `faces`.
    """
    height, width = face_id.shape
    num_layers = layer_z.shape[2]
    weight = 1.0 / (samples * samples)
    for y in range(height):
        for x in range(width):
            opaque = face_id[y, x]
            if opaque < 0 and layer_z[y, x, 0] <= 0.0:
                continue
            px, py = x + 0.5, y + 0.5
            through = 1.0
            red, green, blue = 0.0, 0.0, 0.0
            for k in range(num_layers):
                if layer_z[y, x, k] <= 0.0 or through < 0.01:
                    break
                r, g, b = _fragment(
                    layer_face[y, x, k] + num_opaque, px, py, camera[0], camera[1], camera[2], camera[3], xy, inv_z, faces, face_uv,
                    face_texture, texture_info, textures, to_linear, normals, light, key_light, key_dirs, key_colors, materials,
                    face_material,
                )
                gain = through * layer_alpha[y, x, k]
                red += gain * r
                green += gain * g
                blue += gain * b
                through -= gain
            if opaque >= 0 and through >= 0.01:
                r, g, b = _fragment(
                    opaque, px, py, camera[0], camera[1], camera[2], camera[3], xy, inv_z, faces, face_uv, face_texture, texture_info,
                    textures, to_linear, normals, light, key_light, key_dirs, key_colors, materials, face_material,
                )
                red += through * r
                green += through * g
                blue += through * b
            if opaque >= 0:
                through = 0.0
            oy, ox = y // samples, x // samples
            out[oy, ox, 0] += weight * red
            out[oy, ox, 1] += weight * green
            out[oy, ox, 2] += weight * blue
            out[oy, ox, 3] += weight * (1.0 - through)


@njit(**_JIT)
def accumulate_light(points, normals, wrap, occluders, faces, directions, radiance, key_of, resolution, bias, light, key_light):
    """Irradiance of every vertex from D distant lights, each with a depth-map shadow.

    points, normals (V, 3); wrap (V,) softens the terminator; occluders (U, 3) and faces (F, 3) cast shadows; directions (D, 3) point to
    the light; radiance (D, 3); key_of (D,) names the key light a direction belongs to or -1; light (V, 3), key_light (V, L) are added to.
    """
    center = np.zeros(3, np.float32)
    for i in range(3):
        center[i] = 0.5 * (occluders[:, i].min() + occluders[:, i].max())
    radius = 1e-6
    for u in range(occluders.shape[0]):
        d = (occluders[u, 0] - center[0]) ** 2 + (occluders[u, 1] - center[1]) ** 2 + (occluders[u, 2] - center[2]) ** 2
        radius = max(radius, d)
    radius = math.sqrt(radius) * 1.01
    half = 0.5 * resolution
    gain = half / radius
    xy = np.empty((occluders.shape[0], 2), np.float32)
    z = np.empty(occluders.shape[0], np.float32)
    depth = np.empty((resolution, resolution), np.float32)
    face_id = np.empty((resolution, resolution), np.int32)
    for d in range(directions.shape[0]):
        dx, dy, dz = directions[d, 0], directions[d, 1], directions[d, 2]
        ux, uy, uz = (0.0, dz, -dy) if abs(dx) < 0.8 else (-dz, 0.0, dx)
        norm = 1.0 / math.sqrt(ux * ux + uy * uy + uz * uz)
        ux, uy, uz = ux * norm, uy * norm, uz * norm
        wx, wy, wz = dy * uz - dz * uy, dz * ux - dx * uz, dx * uy - dy * ux
        for i in range(occluders.shape[0]):
            x, y, s = occluders[i, 0] - center[0], occluders[i, 1] - center[1], occluders[i, 2] - center[2]
            xy[i, 0] = (x * ux + y * uy + s * uz) * gain + half
            xy[i, 1] = (x * wx + y * wy + s * wz) * gain + half
            z[i] = (x * dx + y * dy + s * dz) + 2.0 * radius
        depth[:] = 0.0
        raster_opaque(xy, z, faces, depth, face_id)
        for i in range(points.shape[0]):
            cosine = normals[i, 0] * dx + normals[i, 1] * dy + normals[i, 2] * dz
            cosine = (cosine + wrap[i]) / (1.0 + wrap[i])
            if cosine <= 0.0:
                continue
            x, y, s = points[i, 0] - center[0], points[i, 1] - center[1], points[i, 2] - center[2]
            sx = (x * ux + y * uy + s * uz) * gain + half - 0.5
            sy = (x * wx + y * wy + s * wz) * gain + half - 0.5
            sz = x * dx + y * dy + s * dz + 2.0 * radius
            x0, y0 = int(math.floor(sx)), int(math.floor(sy))
            lit = 0.0
            for j in range(2):
                for k in range(2):
                    qx, qy = x0 + k, y0 + j
                    share = (sx - x0 if k else 1.0 - sx + x0) * (sy - y0 if j else 1.0 - sy + y0)
                    inside = 0 <= qx < resolution and 0 <= qy < resolution
                    over = depth[qy, qx] - sz - bias if inside else -1.0
                    lit += share * min(1.0, max(0.0, 1.0 - over / bias))
            lit *= cosine
            light[i, 0] += lit * radiance[d, 0]
            light[i, 1] += lit * radiance[d, 1]
            light[i, 2] += lit * radiance[d, 2]
            if key_of[d] >= 0:
                key_light[i, key_of[d]] += lit


@njit(inline="always", **_JIT)
def _lattice(ix, iy, iz):
    h = (ix * 73856093) ^ (iy * 19349663) ^ (iz * 83492791)
    h &= 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) / 65535.0


@njit(**_JIT)
def fractal_noise(points, octaves, out):
    """Fractal value noise of points (N, 3), each octave 2.1 x finer and half as strong; out (N,) in [0, 1]."""
    norm = 0.0
    for o in range(octaves):
        norm += 0.5**o
    for i in range(points.shape[0]):
        total = 0.0
        scale = 1.0
        for o in range(octaves):
            x, y, z = points[i, 0] * scale, points[i, 1] * scale, points[i, 2] * scale
            ix, iy, iz = int(math.floor(x)), int(math.floor(y)), int(math.floor(z))
            fx, fy, fz = x - ix, y - iy, z - iz
            fx, fy, fz = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy), fz * fz * (3 - 2 * fz)
            value = 0.0
            for c in range(8):
                cx, cy, cz = c & 1, (c >> 1) & 1, (c >> 2) & 1
                w = (fx if cx else 1 - fx) * (fy if cy else 1 - fy) * (fz if cz else 1 - fz)
                value += w * _lattice(ix + cx, iy + cy, iz + cz)
            total += value * 0.5**o
            scale *= 2.1
        out[i] = total / norm
