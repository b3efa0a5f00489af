package miniostore

import (
	"context"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/varvelog/varve/segments"
)

// Get implements [segments.Store]. A range that starts past the end costs a second
// request, for the size.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	err := segments.CheckCall(ctx, key)
	var data [][]byte
	var size int64
	if err == nil {
		data, _, size, err = s.get(ctx, key, offset, length, nil)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("get %s: %w", key, err)
	}
	return data[0], size, nil
}

// GetInto implements [segments.IntoReader].
func (s *Store) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	return s.GetScattered(ctx, key, [][]byte{into}, offset)
}

// GetScattered implements [segments.ScatterReader].
func (s *Store) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (int, error) {
	length := int64(0)
	for _, b := range into {
		length += int64(len(b))
	}
	err := segments.CheckCall(ctx, key)
	if err == nil && offset < 0 {
		err = fmt.Errorf("offset %d is negative", offset)
	}
	count := int64(0)
	if err == nil {
		_, count, _, err = s.get(ctx, key, offset, length, into)
	}
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", key, err)
	}
	return int(count), nil
}

// get reads a range into the memory given, which has room for it, or into new memory if there is none.
func (s *Store) get(ctx context.Context, key string, offset, length int64, into [][]byte) (data [][]byte, count, size int64, err error) {
	if length == 0 && offset >= 0 {
		// HTTP has no empty ranges.
		size, err := s.size(ctx, key)
		return [][]byte{{}}, 0, size, err
	}
	var options minio.GetObjectOptions
	asked := segments.RangeHeader(offset, length)
	if asked != "" {
		options.Set("Range", asked)
	}
	body, info, header, err := s.core.GetObject(ctx, s.config.Bucket, s.prefix+key, options)
	if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
		size, err := s.size(ctx, key)
		return [][]byte{{}}, 0, size, err
	}
	if err != nil {
		return nil, 0, 0, translate(ctx, err)
	}
	defer body.Close()
	count, size = info.Size, info.Size
	if asked != "" {
		if count, size, err = segments.ParseContentRange(header.Get("Content-Range"), offset, length); err != nil {
			return nil, 0, 0, err
		}
	}
	if data = into; data == nil {
		data = [][]byte{make([]byte, count)}
	}
	if n, err := segments.ReadScattered(body, data, count); err != nil {
		if ended := segments.Interrupted(ctx); ended != nil {
			return nil, 0, 0, ended
		}
		return nil, 0, 0, fmt.Errorf("%w: the answer ended after %d of %d bytes: %w", segments.ErrUnavailable, n, count, err)
	}
	return data, count, size, nil
}

func (s *Store) size(ctx context.Context, key string) (int64, error) {
	info, err := s.core.StatObject(ctx, s.config.Bucket, s.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		return 0, translate(ctx, err)
	}
	return info.Size, nil
}
